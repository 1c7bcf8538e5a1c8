// Command skein-nvml streams what NVML says of the GPUs as lines of JSON, one a
// second. The agent starts it where libnvidia-ml is: it needs cgo, which the
// agent does without, and a driver that hangs or crashes takes this process
// only. It opens no CUDA context. Functions that the library lacks or a GPU
// refuses leave their value out.
package main
