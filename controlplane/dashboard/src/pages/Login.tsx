import { useNavigate, useSearch } from "@tanstack/react-router";
import { type FormEvent, useEffect, useRef, useState } from "react";
import { useTitle } from "../lib/hooks";
import { queryClient } from "../lib/transport";
import { Banner } from "../ui/basics";

/** Only a path of this server: no other host, no scheme. */
function safeNext(next: string | undefined): string {
  return next?.startsWith("/") && !next.startsWith("//") && !next.startsWith("/\\") && !next.startsWith("/login") ? next : "/";
}

export function Login() {
  useTitle("Sign in");
  const { next } = useSearch({ from: "/login" });
  const navigate = useNavigate();
  const [token, setToken] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState("");
  const field = useRef<HTMLInputElement>(null);

  useEffect(() => field.current?.focus(), []);

  const submit = async (e: FormEvent) => {
    e.preventDefault();
    const value = token.trim();
    if (!value) {
      setError("Paste a token first.");
      field.current?.focus();
      return;
    }
    setBusy(true);
    setError("");
    try {
      const res = await fetch("/login", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ token: value }) });
      if (res.ok) {
        await queryClient.resetQueries();
        await navigate({ href: safeNext(next), replace: true });
        return;
      }
      setError(
        res.status === 401 || res.status === 403
          ? "This token is not valid here: it may be mistyped, revoked, expired, or of another server."
          : `The server answered ${res.status}: ${(await res.text()).slice(0, 200)}`,
      );
    } catch {
      setError("The control plane does not answer. Check that skeind runs and that this network reaches it.");
    }
    setBusy(false);
    field.current?.focus();
  };

  return (
    <main className="login">
      <form className="panel" onSubmit={(e) => void submit(e)}>
        <h1 className="brand">
          <img src="/favicon.svg" alt="" width={34} height={34} />
          Sign in to Skein
        </h1>
        <div className="field">
          <label htmlFor="token">Token</label>
          <input
            id="token"
            ref={field}
            className="input mono"
            type="password"
            autoComplete="current-password"
            placeholder="skp_…"
            spellCheck={false}
            value={token}
            aria-invalid={error !== ""}
            aria-describedby="token-help"
            onChange={(e) => setToken(e.target.value)}
          />
        </div>
        {error && (
          <div role="alert">
            <Banner tone="bad">{error}</Banner>
          </div>
        )}
        <button type="submit" className="btn primary" disabled={busy}>
          {busy ? "Signing in…" : "Sign in"}
        </button>
        <div id="token-help" className="small muted stack">
          <p>
            <strong>First start:</strong> skeind prints the admin token and keeps it in <code>admin.token</code> in its data folder.
          </p>
          <p>
            <strong>Everyone else</strong> gets one from an admin:
          </p>
          <pre className="json">skein credential create NAME --role operator</pre>
        </div>
      </form>
    </main>
  );
}
