import { useQuery } from "@connectrpc/connect-query";
import { Link } from "@tanstack/react-router";
import { type Rollout, RolloutService } from "../gen/skein/rollout/v1/rollout_pb";
import { count, plural, releaseLabel } from "../lib/format";
import { useTitle } from "../lib/hooks";
import { isOpen, rolloutParts } from "../lib/rollout";
import { Ago, Badge, Bones, Empty, Failure, Strip } from "../ui/basics";
import { Icon } from "../ui/Icon";

export function Rollouts() {
  useTitle("Rollouts");
  const q = useQuery(RolloutService.method.listRollouts, {}, { refetchInterval: 4_000 });
  const list = q.data?.rollouts ?? [];
  return (
    <>
      <div className="head">
        <div><h1>Rollouts</h1><p className="sub">{q.data ? `${plural(list.length, "rollout")}, ${count(list.filter(isOpen).length)} under way` : " "}</p></div>
        <div className="actions"><Link to="/rollouts/new" className="btn primary"><Icon name="plus" />New rollout</Link></div>
      </div>
      <div className="panel">
        {q.isPending ? (
          <div className="body-pad pad"><Bones rows={6} h={26} /></div>
        ) : q.error && !q.data ? (
          <Failure error={q.error} what="The rollouts" retry={() => void q.refetch()} />
        ) : list.length === 0 ? (
          <Empty title="No rollouts yet" icon="rollout"><p>A rollout moves devices from one release to another in waves, each judged before the next begins.</p><Link to="/releases" className="btn">Choose a release</Link></Empty>
        ) : (
          <ul className="attention">{list.map((r) => <Item key={r.id} rollout={r} />)}</ul>
        )}
      </div>
    </>
  );
}

function Item({ rollout: r }: { rollout: Rollout }) {
  const wave = r.waves[r.currentWave];
  return (
    <li>
      <Link to="/rollouts/$rollout" params={{ rollout: r.id }}>
        <div className="grow stack">
          <div className="row wrap spread">
            <span className="row wrap"><strong>{r.name || r.id}</strong><Badge word={r.phase} /><span className="muted">to {releaseLabel(r.releaseName, r.release)}</span></span>
            <span className="muted small">started <Ago at={r.created} />{r.createdBy ? ` by ${r.createdBy}` : ""}</span>
          </div>
          <Strip parts={rolloutParts(r)} label="Devices" thin />
          <div className="row wrap spread small muted num">
            <span>{count(r.healthy)} of {plural(r.devices, "device")} healthy{r.failed > 0 ? `, ${count(r.failed)} failed` : ""}{r.rolledBack > 0 ? `, ${count(r.rolledBack)} rolled back` : ""}{r.harmed > 0 ? `, ${count(r.harmed)} harmed` : ""}</span>
            <span>{isOpen(r) && wave ? `wave ${wave.name}, ${wave.state}` : r.reason}</span>
          </div>
        </div>
      </Link>
    </li>
  );
}
