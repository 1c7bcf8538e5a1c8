import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";
import { QueryClient } from "@tanstack/react-query";
import { FleetService } from "../gen/skein/fleet/v1/fleet_pb";
import { RolloutService } from "../gen/skein/rollout/v1/rollout_pb";

export const queryClient = new QueryClient({
  defaultOptions: {
    queries: {
      staleTime: 5_000,
      retry: (failures, err) => failures < 2 && isTransient(err),
      refetchOnWindowFocus: true,
    },
  },
});

/** Asks WhoAmI again, which ends in the login page when the session is gone. */
export function recheckSession(): void {
  void queryClient.invalidateQueries({ queryKey: ["session"] });
}

const session: Interceptor = (next) => async (req) => {
  try {
    return await next(req);
  } catch (e) {
    const err = ConnectError.from(e);
    if (err.code === Code.Unauthenticated && req.method.name !== "WhoAmI") recheckSession();
    throw err;
  }
};

export const transport = createConnectTransport({
  baseUrl: window.location.origin,
  useBinaryFormat: true,
  interceptors: [session],
});

export const fleetClient = createClient(FleetService, transport);
export const rolloutClient = createClient(RolloutService, transport);

export function isUnauthenticated(err: unknown): boolean {
  return ConnectError.from(err).code === Code.Unauthenticated;
}

export function isNotFound(err: unknown): boolean {
  return ConnectError.from(err).code === Code.NotFound;
}

function isTransient(err: unknown): boolean {
  const { code } = ConnectError.from(err);
  return code === Code.Unavailable || code === Code.Unknown || code === Code.DeadlineExceeded;
}

/** Text of an error for people: what went wrong and, where known, what to do. */
export function explainError(err: unknown): string {
  const e = ConnectError.from(err);
  if (e.code === Code.Unavailable || (e.code === Code.Unknown && /fetch|network|load failed/i.test(e.rawMessage))) {
    return "The control plane does not answer. Check that skeind runs and that this network reaches it.";
  }
  if (e.code === Code.PermissionDenied) return `Not allowed: ${e.rawMessage}`;
  return e.rawMessage || "Unknown error";
}
