import { useQuery } from "@tanstack/react-query";
import { createClient } from "@connectrpc/connect";
import { AuthService } from "../gen/skein/auth/v1/auth_pb";
import { forgetFleet } from "./fleet";
import { queryClient, transport } from "./transport";

const client = createClient(AuthService, transport);

/** Who is signed in; an Unauthenticated error when nobody is. */
export function useSession() {
  return useQuery({
    queryKey: ["session"],
    queryFn: ({ signal }) => client.whoAmI({}, { signal }),
    staleTime: 300_000,
  });
}

export type Role = "viewer" | "operator" | "admin";
const ranks: Role[] = ["viewer", "operator", "admin"];

/** Whether the person may act as a role; the server decides in the end. */
export function useMay(role: Role): boolean {
  const mine = useSession().data?.credential?.role as Role | undefined;
  return mine !== undefined && ranks.indexOf(mine) >= ranks.indexOf(role);
}

export async function signOut(): Promise<void> {
  const res = await fetch("/logout", { method: "POST" });
  if (!res.ok && res.status !== 401) throw new Error(`The server answered ${res.status} to the sign-out`);
  forgetFleet();
  queryClient.clear();
}

