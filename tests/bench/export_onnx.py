#!/usr/bin/python3
"""Writes the ONNX models that the engine benchmark gives to ONNX Runtime.

    export_onnx.py FOLDER resnet18-224-1 resnet18-224-8 ...     (arch-px-batch; batch n: any)

torchvision's networks with random weights in evaluation mode, fixed shapes but for batch n, batch norm
folded into the convolutions by the exporter. A model that is there already is left alone.
"""
import os
import sys
import warnings

warnings.filterwarnings("ignore")
if len(sys.argv) < 3 or "--help" in sys.argv:
    print(__doc__)
    sys.exit(0)

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden"))
from resnet_cifar import build

folder = sys.argv[1]
os.makedirs(folder, exist_ok=True)
for model in sys.argv[2:]:
    path = os.path.join(folder, model + ".onnx")
    if os.path.exists(path):
        continue
    arch, px, batch = model.split("-")
    net = build(arch, 100).eval()
    x = torch.randn(1 if batch == "n" else int(batch), 3, int(px), int(px))
    free = {"dynamic_axes": {"x": [0], "y": [0]}} if batch == "n" else {}
    torch.onnx.export(net, x, path + ".tmp", opset_version=13, do_constant_folding=True, input_names=["x"],
                      output_names=["y"], **free)
    os.rename(path + ".tmp", path)
    print("exported", path)
