import { type ReactNode, useState } from "react";
import type { Rollout } from "../../gen/skein/rollout/v1/rollout_pb";
import { isOpen } from "../../lib/rollout";
import { useMay } from "../../lib/session";
import { rolloutClient } from "../../lib/transport";
import { Dialog, ReasonField } from "../../ui/Dialog";
import { Icon } from "../../ui/Icon";
import { toast } from "../../ui/toast";

interface ReasonProps {
  title: string;
  action: string;
  done: string;
  danger?: boolean;
  required?: boolean;
  onClose: () => void;
  run: (reason: string) => Promise<void>;
  children: ReactNode;
}

export function ReasonDialog({ title, action, done, danger = false, required = false, onClose, run, children }: ReasonProps) {
  const [reason, setReason] = useState("");
  return (
    <Dialog title={title} action={action} danger={danger} disabled={required && reason.trim() === ""} onClose={onClose} onSubmit={async () => {
      await run(reason.trim());
      toast("ok", done);
    }}>
      {children}
      <ReasonField value={reason} onChange={setReason} required={required} />
    </Dialog>
  );
}

type Action = "pause" | "resume" | "abort";

export function RolloutActions({ rollout: r, onDone }: { rollout: Rollout; onDone: () => void }) {
  const [open, setOpen] = useState<Action>();
  const may = useMay("operator");
  const why = may ? undefined : "Your role may look only; ask an admin for the role operator";
  if (!isOpen(r)) return null;
  const close = () => setOpen(undefined);
  const keeps = (r.spec?.onAbort as { done?: string } | undefined)?.done === "keep";
  const running = r.phase === "running" || r.phase === "pending";
  return (
    <div className="actions">
      {running && <button type="button" className="btn" disabled={!may} title={why} onClick={() => setOpen("pause")}><Icon name="pause" />Pause</button>}
      {r.phase === "paused" && <button type="button" className="btn primary" disabled={!may} title={why} onClick={() => setOpen("resume")}><Icon name="play" />Resume</button>}
      {r.phase !== "aborting" && <button type="button" className="btn danger" disabled={!may} title={why} onClick={() => setOpen("abort")}><Icon name="stop" />Abort</button>}
      {open === "pause" && (
        <ReasonDialog title="Pause the rollout?" action="Pause" done="The rollout is paused" onClose={close} run={async (reason) => { await rolloutClient.pauseRollout({ rollout: r.id, reason }); onDone(); }}>
          <p>No further device is offered the release. Devices under way finish.</p>
        </ReasonDialog>
      )}
      {open === "resume" && (
        <ReasonDialog title="Resume the rollout?" action="Resume" done="The rollout goes on" onClose={close} run={async (reason) => { await rolloutClient.resumeRollout({ rollout: r.id, reason }); onDone(); }}>
          <p>It goes on where it stopped{r.reason ? `. It was paused because: ${r.reason}` : "."}</p>
        </ReasonDialog>
      )}
      {open === "abort" && (
        <ReasonDialog title="Abort the rollout?" action="Abort" done="The rollout is being aborted" danger required onClose={close} run={async (reason) => { await rolloutClient.abortRollout({ rollout: r.id, reason }); onDone(); }}>
          <p>It stops for good. {keeps ? "Devices that have the release keep it." : `Devices that have the release go back to what they ran before (${r.healthy} now).`}</p>
        </ReasonDialog>
      )}
    </div>
  );
}
