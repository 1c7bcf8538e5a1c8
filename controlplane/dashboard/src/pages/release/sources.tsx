import { useQuery } from "@connectrpc/connect-query";
import { ModelService } from "../../gen/skein/artifact/v1/artifact_pb";
import type { Release } from "../../gen/skein/release/v1/release_pb";
import { Bones, Digest, Failure, Panel } from "../../ui/basics";
import { Mirrors } from "./mirrors";

/** Where devices may take the bytes of the model from. */
export function Sources({ release: r }: { release: Release }) {
  const q = useQuery(ModelService.method.getModel, { model: r.model }, { enabled: r.model !== "" });
  if (r.model === "") return null;
  const v = q.data?.versions.find((x) => x.version === r.modelVersion);
  return (
    <Panel title="Sources of the model">
      {q.isPending ? <Bones rows={3} /> : q.error && !q.data ? <Failure error={q.error} what="The model" retry={() => void q.refetch()} /> : (
        <dl className="facts">
          <dt>ONNX file</dt><dd><Digest value={v?.onnx?.digest ?? ""} what="digest of the ONNX file" /></dd>
          <dt>Mirrors</dt><dd><Mirrors list={v?.mirrors ?? []} /></dd>
        </dl>
      )}
    </Panel>
  );
}
