"""ResNet-20/32/56 for 32 px images (He et al. 2015, section 4.2), in torchvision's names.

Three stages of 16, 32 and 64 channels after a 3x3 stem; where a shortcut changes shape it is a 1x1
convolution with batch norm (`downsample.0`, `downsample.1`), as in torchvision's ImageNet ResNets.
"""
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock


class ResNetCifar(nn.Module):
    def __init__(self, blocks, num_classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = stage(16, 16, blocks, 1)
        self.layer2 = stage(16, 32, blocks, 2)
        self.layer3 = stage(32, 64, blocks, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def stage(ic, oc, blocks, stride):
    downsample = None
    if stride != 1 or ic != oc:
        downsample = nn.Sequential(nn.Conv2d(ic, oc, 1, stride, bias=False), nn.BatchNorm2d(oc))
    rest = [BasicBlock(oc, oc) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(ic, oc, stride, downsample), *rest)


def resnet20(num_classes=10):
    return ResNetCifar(3, num_classes)


def resnet32(num_classes=10):
    return ResNetCifar(5, num_classes)


def resnet56(num_classes=10):
    return ResNetCifar(9, num_classes)


def build(name, num_classes):
    """A network by trunkd's name: from this file or, for resnet18/34/50, from torchvision."""
    if name in globals():
        return globals()[name](num_classes)
    import torchvision.models

    return getattr(torchvision.models, name)(num_classes=num_classes)
