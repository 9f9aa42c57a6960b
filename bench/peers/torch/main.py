"""PyTorch as a peer of the bench: reads requests as JSON lines, answers each with one.

load {case, inputs, weights?, key?, threads} | results {path} | run {batches, runs} -> {seconds} of each batch | peak -> {bytes} |
threads {threads} | unload. `--compile` runs everything through torch.compile.
"""

import ctypes
import gc
import json
import sys
import time

import torch

from subjects import Unsupported, make_module, make_subject
from tensor_file import read, write

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def status(field):
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field):
                return 1024 * int(line.split()[1])
    return 0


def trim():
    """Hands freed memory back, so that the next case starts where the first one did."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


class Server:
    def __init__(self, compiled):
        self.compiled = compiled
        self.subject = self.module = self.key = None
        self.base = status("VmRSS")

    def wrap(self, f):
        return torch.compile(f, dynamic=False) if self.compiled else f

    def load(self, r):
        case = r["case"]
        torch.set_num_threads(r["threads"])
        if self.compiled:
            torch._dynamo.reset()
        if r.get("key") != self.key:
            self.module = self.subject = None
            trim()
            self.base = status("VmRSS")
            self.module = make_module(case, r["weights"], DTYPES[case["precision"]]) if r.get("weights") else None
            self.key = r.get("key")
        inputs = {name: t.clone() for name, t in read(r["inputs"]).items()}
        self.subject = make_subject(case, inputs, self.module, self.wrap)
        return {}

    def results(self, r):
        write(r["path"], {name: t for name, t in self.subject.results().items()})
        self.subject.forget()
        return {}

    def run(self, r):
        subject, runs, seconds = self.subject, r["runs"], []
        for _ in range(r["batches"]):
            begin = time.perf_counter()
            for _ in range(runs):
                subject.step()
                subject.forget()
            seconds.append(time.perf_counter() - begin)
        return {"seconds": seconds}

    def peak(self, r):
        """The largest resident memory of one pass beyond what the process had before the case."""
        trim()
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        self.subject.step()
        self.subject.forget()
        return {"bytes": status("VmHWM") - self.base}

    def threads(self, r):
        torch.set_num_threads(r["threads"])
        return {}

    def unload(self, r):
        self.subject = None
        if r.get("all"):
            self.module = self.key = None
        trim()
        return {}


def main():
    server = Server("--compile" in sys.argv)
    print(json.dumps({"torch": torch.__version__, "python": sys.version.split()[0]}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(server, request["do"])(request)
        except Unsupported as error:
            reply = {"error": str(error), "unsupported": True}
        except Exception as error:  # whatever it is belongs to this request: the bench shows it
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


main()
