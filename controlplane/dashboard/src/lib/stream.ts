import { Code, ConnectError } from "@connectrpc/connect";
import { recheckSession } from "./transport";

export type StreamState = "connecting" | "live" | "retrying" | "paused" | "ended" | "refused";

interface StreamOptions<T> {
  open: (signal: AbortSignal) => AsyncIterable<T>;
  onMessage: (message: T, first: boolean) => void;
  onState: (state: StreamState, error?: ConnectError) => void;
  /** Whether the server's regular end of the stream means that nothing more will come. */
  endIsFinal?: (last: T | undefined) => boolean;
}

const hiddenGrace = 30_000; // a hidden tab gives its connection back after this long
const maxBackoff = 20_000;

/**
 * Keeps a server stream open until the returned function is called: reopens it
 * with growing, jittered waits, and rests while the tab is hidden, since
 * browsers allow few connections to one host.
 */
export function keepStream<T>(o: StreamOptions<T>): () => void {
  let abort = new AbortController();
  let stopped = false;
  let wake: (() => void) | undefined;
  let hiddenTimer: ReturnType<typeof setTimeout> | undefined;
  let resting = false;

  const sleep = (ms: number) =>
    new Promise<void>((resolve) => {
      const t = setTimeout(resolve, ms);
      wake = () => {
        clearTimeout(t);
        resolve();
      };
    });

  const onVisibility = () => {
    clearTimeout(hiddenTimer);
    if (document.visibilityState === "hidden") {
      hiddenTimer = setTimeout(() => {
        resting = true;
        abort.abort();
      }, hiddenGrace);
      return;
    }
    resting = false;
    wake?.();
  };
  document.addEventListener("visibilitychange", onVisibility);
  window.addEventListener("online", onVisibility);

  const run = async () => {
    let failures = 0;
    while (!stopped) {
      if (resting) {
        o.onState("paused");
        await sleep(3_600_000);
        continue;
      }
      o.onState(failures === 0 ? "connecting" : "retrying");
      abort = new AbortController();
      let last: T | undefined;
      try {
        let first = true;
        for await (const message of o.open(abort.signal)) {
          if (stopped) return;
          failures = 0;
          last = message;
          if (first) o.onState("live");
          o.onMessage(message, first);
          first = false;
        }
        if (stopped) return;
        if (o.endIsFinal?.(last)) {
          o.onState("ended");
          return;
        }
      } catch (e) {
        if (stopped) return;
        const err = ConnectError.from(e);
        if (err.code === Code.Unauthenticated) recheckSession();
        if ([Code.Unauthenticated, Code.PermissionDenied, Code.NotFound, Code.Unimplemented].includes(err.code)) {
          o.onState("refused", err);
          return;
        }
        if (!resting) o.onState("retrying", err);
      }
      if (resting) continue;
      failures++;
      await sleep(Math.min(maxBackoff, 500 * 2 ** Math.min(failures, 6)) * (0.5 + Math.random() / 2));
    }
  };
  void run();

  return () => {
    stopped = true;
    clearTimeout(hiddenTimer);
    document.removeEventListener("visibilitychange", onVisibility);
    window.removeEventListener("online", onVisibility);
    wake?.();
    abort.abort();
  };
}
