// A library with the functions of NVML that skein-nvml calls. FULL answers all,
// ORIN refuses what nvgpu refuses, LEAN lacks functions, HANG never returns,
// CRASH ends the process.
#include <string.h>
#include <unistd.h>
#define OK 0
#define NOT_SUPPORTED 3
typedef struct { unsigned gpu, memory; } rates;
typedef struct { unsigned long long total, free, used; } memory;

#ifdef ORIN
#define ANSWER NOT_SUPPORTED
#else
#define ANSWER OK
#endif

int nvmlInit_v2(void) { return OK; }
int nvmlShutdown(void) { return OK; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 1; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)(long)(i + 1); return OK; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) { strncpy(s, "540.4.0", n); return OK; }
int nvmlDeviceGetName(void *d, char *s, unsigned n) { strncpy(s, "Stub GPU", n); return OK; }
int nvmlDeviceGetUUID(void *d, char *s, unsigned n) { strncpy(s, "GPU-1", n); return OK; }
int nvmlDeviceGetCudaComputeCapability(void *d, int *a, int *b) { *a = 8; *b = 7; return OK; }
int nvmlDeviceGetUtilizationRates(void *d, rates *r) {
#ifdef HANG
	for (;;) sleep(1);
#endif
#ifdef CRASH
	*(volatile int *)0 = 1;
#endif
	r->gpu = 42;
	return ANSWER;
}
int nvmlDeviceGetMemoryInfo(void *d, memory *m) { m->total = 8ull << 30; m->used = 1ull << 30; return ANSWER; }
#ifndef LEAN
int nvmlDeviceGetClockInfo(void *d, int t, unsigned *v) { *v = t == 0 ? 1300 : 3199; return ANSWER; }
int nvmlDeviceGetPowerUsage(void *d, unsigned *v) { *v = 12500; return ANSWER; }
int nvmlDeviceGetTemperature(void *d, int t, unsigned *v) { *v = 51; return ANSWER; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, unsigned long long *v) { *v = 0x4 | 0x1; return ANSWER; }
#endif
