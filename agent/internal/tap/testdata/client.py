"""An application: the official tritonclient, over HTTP and gRPC, unchanged.

Arguments: HTTP url, gRPC url, model, version that serves, version that does not.
Prints one line for each thing that works; any other end is a failure.
"""

import asyncio
import queue
import sys

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as grpcaio
import tritonclient.http as httpclient
import tritonclient.http.aio as httpaio
from tritonclient.utils import InferenceServerException

http_url, grpc_url, model, version, absent = sys.argv[1:]
x = np.arange(12, dtype=np.float32).reshape(3, 4)
want = 2 * x + int(version)


def inputs(lib, **kw):
    one = lib.InferInput("x", x.shape, "FP32")
    one.set_data_from_numpy(x, **kw)
    return [one]


def check(what, result):
    got = result.as_numpy("y")
    response = result.get_response()
    name = response["model_name"] if isinstance(response, dict) else response.model_name
    number = response["model_version"] if isinstance(response, dict) else response.model_version
    assert np.array_equal(got, want), (what, got, want)
    assert (name, number) == (model, version), (what, name, number)
    print(what)


def refused(what, call, *words):
    try:
        call()
    except InferenceServerException as e:
        assert any(w in str(e) for w in words), (what, str(e))
        print(what)
        return
    raise AssertionError(what + " was not refused")


h = httpclient.InferenceServerClient(http_url, concurrency=4)
assert h.is_server_live() and h.is_server_ready() and h.is_model_ready(model) and h.is_model_ready(model, version)
assert h.get_model_metadata(model)["name"] == model
assert h.get_model_config(model)["name"] == model
check("http json", h.infer(model, inputs(httpclient, binary_data=False), outputs=[httpclient.InferRequestedOutput("y", binary_data=False)]))
check("http binary", h.infer(model, inputs(httpclient, binary_data=True), outputs=[httpclient.InferRequestedOutput("y", binary_data=True)]))
check("http version", h.infer(model, inputs(httpclient), model_version=version))
for algorithm in ("gzip", "deflate"):
    check("http request " + algorithm, h.infer(model, inputs(httpclient), request_compression_algorithm=algorithm))
    check("http answer " + algorithm, h.infer(model, inputs(httpclient), response_compression_algorithm=algorithm))
for pending in [h.async_infer(model, inputs(httpclient)) for _ in range(8)]:
    result = pending.get_result()
check("http async", result)
refused("http absent version", lambda: h.infer(model, inputs(httpclient), model_version=absent), "not served here")
refused("http load", lambda: h.load_model(model), "not for applications")
refused("http unload", lambda: h.unload_model(model), "not for applications")
refused("http shared memory", lambda: h.register_system_shared_memory("r", "/r", 64), "not for applications")
refused("http log settings", lambda: h.update_log_settings({"log_file": "/tmp/x"}), "not for applications")

g = grpcclient.InferenceServerClient(grpc_url)
assert g.is_server_live() and g.is_server_ready() and g.is_model_ready(model) and g.is_model_ready(model, version)
assert g.get_model_metadata(model).name == model
check("grpc", g.infer(model, inputs(grpcclient)))
check("grpc version", g.infer(model, inputs(grpcclient), model_version=version))
for algorithm in ("gzip", "deflate"):
    check("grpc " + algorithm, g.infer(model, inputs(grpcclient), compression_algorithm=algorithm))
answers = queue.Queue()
for _ in range(8):
    g.async_infer(model, inputs(grpcclient), callback=lambda result, error: answers.put((result, error)))
for _ in range(8):
    result, error = answers.get(timeout=30)
    assert error is None, error
check("grpc async", result)
g.start_stream(callback=lambda result, error: answers.put((result, error)))
for i in range(20):
    g.async_stream_infer(model, inputs(grpcclient), request_id=str(i))
seen = set()
for _ in range(20):
    result, error = answers.get(timeout=30)
    assert error is None, error
    seen.add(result.get_response().id)
assert seen == {str(i) for i in range(20)}, seen
check("grpc stream", result)
g.stop_stream()
refused("grpc absent version", lambda: g.infer(model, inputs(grpcclient), model_version=absent), "not served here")
refused("grpc load", lambda: g.load_model(model), "not for applications")
refused("grpc unload", lambda: g.unload_model(model), "not for applications")
refused("grpc shared memory", lambda: g.register_system_shared_memory("r", "/r", 64), "not for applications")
refused("grpc trace", lambda: g.update_trace_settings(settings={"trace_file": "/tmp/x"}), "not for applications")


async def both():
    async with httpaio.InferenceServerClient(http_url) as c:
        check("http asyncio", await c.infer(model, inputs(httpclient)))
    async with grpcaio.InferenceServerClient(grpc_url) as c:
        check("grpc asyncio", await c.infer(model, inputs(grpcclient)))


asyncio.run(both())
