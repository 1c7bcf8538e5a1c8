import { useEffect, useRef } from "react";

const keys: [string[], string][] = [
  [["g", "o"], "Overview"],
  [["g", "d"], "Devices"],
  [["g", "r"], "Rollouts"],
  [["g", "l"], "Releases"],
  [["g", "m"], "Models"],
  [["g", "a"], "Audit"],
  [["/"], "Search devices"],
  [["j"], "Next device in the list"],
  [["k"], "Previous device in the list"],
  [["t"], "Light or dark"],
  [["?"], "This help"],
];

export function Shortcuts({ onClose }: { onClose: () => void }) {
  const ref = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    if (ref.current && !ref.current.open) ref.current.showModal();
  }, []);
  return (
    <dialog ref={ref} aria-labelledby="shortcuts" onClose={onClose}>
      <h2 id="shortcuts" className="dialog-head">
        Keyboard shortcuts
      </h2>
      <div className="dialog-body">
        <dl className="facts">
          {keys.map(([k, what]) => (
            <div key={what} className="contents">
              <dt>
                {k.map((x) => (
                  <kbd key={x}>{x}</kbd>
                ))}
              </dt>
              <dd>{what}</dd>
            </div>
          ))}
        </dl>
      </div>
      <div className="dialog-foot">
        <button type="button" className="btn" onClick={onClose}>
          Close
        </button>
      </div>
    </dialog>
  );
}
