import { type ReactNode, useEffect, useRef, useState } from "react";

/** A button that opens a small panel; Escape and a press outside close it. */
export function Menu({ label, name, className = "btn", end = false, children }: { label: ReactNode; name?: string; className?: string; end?: boolean; children: ReactNode }) {
  const [open, setOpen] = useState(false);
  const box = useRef<HTMLDivElement>(null);
  const button = useRef<HTMLButtonElement>(null);

  useEffect(() => {
    if (!open) return;
    const outside = (e: PointerEvent) => {
      if (!box.current?.contains(e.target as Node)) setOpen(false);
    };
    const escape = (e: KeyboardEvent) => {
      if (e.key !== "Escape") return;
      setOpen(false);
      button.current?.focus();
    };
    document.addEventListener("pointerdown", outside);
    document.addEventListener("keydown", escape);
    return () => {
      document.removeEventListener("pointerdown", outside);
      document.removeEventListener("keydown", escape);
    };
  }, [open]);

  return (
    <div className="menu" ref={box}>
      <button ref={button} type="button" className={className} aria-label={name} title={name} aria-expanded={open} onClick={() => setOpen(!open)}>
        {label}
      </button>
      {open && <div className={`menu-panel ${end ? "end" : ""}`}>{children}</div>}
    </div>
  );
}
