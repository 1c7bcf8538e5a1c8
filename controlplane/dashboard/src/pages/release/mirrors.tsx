import { Copy } from "../../ui/basics";

/** Sources outside Skein; whatever they give is checked against the digest. */
export function Mirrors({ list }: { list: string[] }) {
  if (list.length === 0) return <span className="muted">none; devices take it from this server or from their site</span>;
  return <ul className="stack tight">{list.map((m) => <li key={m} className="row"><Copy text={m} what="address of the mirror" /></li>)}</ul>;
}
