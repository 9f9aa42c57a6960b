"""export.py REQUEST TARGET: writes the PyTorch version of a case as an ONNX file for onnxruntime, its weights inside.

REQUEST is the JSON file of the bench's `load`. Prints {inputs, outputs}: the names in their order, or {unsupported}.
"""

import json
import sys
import warnings

import torch
from torch import nn

from subjects import Unsupported, make_module, make_subject
from tensor_file import read


class Exported(nn.Module):
    def __init__(self, subject, names, outputs):
        super().__init__()
        self.f = subject.f
        self.settings = subject.case["settings"]
        self.names, self.outputs = names, outputs

    def forward(self, *tensors):
        y = self.f(dict(zip(self.names, tensors)), self.settings)
        return tuple(y[name] for name in self.outputs) if isinstance(y, dict) else y


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        request = json.load(file)
    case = request["case"]
    inputs = {name: t.clone() for name, t in read(request["inputs"]).items()}
    module = make_module(case, request["weights"], torch.float32) if request["weights"] else None
    subject = make_subject(case, inputs, module, lambda f: f)
    if not hasattr(subject, "x") or not hasattr(subject, "f"):
        raise Unsupported(f"'{case['program']}' is no single graph")
    names, outputs = list(subject.x), list(subject.step())
    exported = Exported(subject, names, outputs).eval()
    tensors = tuple(subject.x[name] for name in names)
    with torch.no_grad():
        torch.onnx.export(
            exported, tensors, sys.argv[2], input_names=names, output_names=outputs, opset_version=18, dynamo=False
        )
    return {"inputs": names, "outputs": outputs}


warnings.filterwarnings("ignore")
try:
    reply = main()
except Exception as error:  # the bench shows it: what has no ONNX form is no case for onnxruntime
    reply = {"unsupported": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
print(json.dumps(reply))
