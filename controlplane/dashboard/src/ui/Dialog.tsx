import { type FormEvent, type ReactNode, useEffect, useId, useRef, useState } from "react";
import { explainError } from "../lib/transport";
import { Banner } from "./basics";

interface DialogProps {
  title: string;
  action: string;
  danger?: boolean;
  disabled?: boolean;
  onClose: () => void;
  /** Does the thing; the dialog closes when it succeeds and shows the error when not. */
  onSubmit: () => Promise<void>;
  children: ReactNode;
}

/** A question with an action, on the browser's own modal dialog. */
export function Dialog({ title, action, danger = false, disabled = false, onClose, onSubmit, children }: DialogProps) {
  const ref = useRef<HTMLDialogElement>(null);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const heading = useId();

  useEffect(() => {
    const d = ref.current;
    if (d && !d.open) d.showModal();
  }, []);

  const submit = async (e: FormEvent) => {
    e.preventDefault();
    if (busy || disabled) return;
    setBusy(true);
    setError(undefined);
    try {
      await onSubmit();
      onClose();
    } catch (err) {
      setError(err);
      setBusy(false);
    }
  };

  return (
    <dialog ref={ref} aria-labelledby={heading} onClose={onClose}>
      <form onSubmit={(e) => void submit(e)}>
        <h2 id={heading} className="dialog-head">
          {title}
        </h2>
        <div className="dialog-body">
          {children}
          {error !== undefined && (
            <div role="alert">
              <Banner tone="bad">{explainError(error)}</Banner>
            </div>
          )}
        </div>
        <div className="dialog-foot">
          <button type="button" className="btn" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" className={`btn primary ${danger ? "danger" : ""}`} disabled={disabled || busy}>
            {busy ? "Working…" : action}
          </button>
        </div>
      </form>
    </dialog>
  );
}

/** A field for the reason of an action, as the audit log keeps it. */
export function ReasonField({ value, onChange, required }: { value: string; onChange: (v: string) => void; required: boolean }) {
  const id = useId();
  return (
    <div className="field">
      <label htmlFor={id}>Reason{required ? "" : " (optional)"}</label>
      <textarea id={id} className="input" value={value} required={required} maxLength={500} onChange={(e) => onChange(e.target.value)} />
      <span className="hint">Kept in the audit log and shown on the rollout.</span>
    </div>
  );
}
