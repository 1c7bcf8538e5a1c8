"""Checks ONNX files with the reference implementations and runs them.

usage: oracle.py FOLDER: for each FOLDER/*.onnx, onnx.checker must accept it,
and ONNX Runtime runs it on NAME.in (shape and float32 values as written by the
test); the outputs go to NAME.out.
"""
import pathlib
import struct
import sys

import numpy
import onnx
import onnxruntime

for path in sorted(pathlib.Path(sys.argv[1]).glob("*.onnx")):
    onnx.checker.check_model(onnx.load(path), full_check=True)
    raw = path.with_suffix(".in").read_bytes()
    rank = struct.unpack_from("<I", raw)[0]
    shape = struct.unpack_from(f"<{rank}I", raw, 4)
    x = numpy.frombuffer(raw, "<f4", offset=4 + 4 * rank).reshape(shape)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x})
    path.with_suffix(".out").write_bytes(
        struct.pack(f"<I{y.ndim}I", y.ndim, *y.shape) + y.astype("<f4").tobytes()
    )
    meta = session.get_modelmeta()
    print(path.stem, meta.producer_name, meta.version, sorted(meta.custom_metadata_map.items()))
