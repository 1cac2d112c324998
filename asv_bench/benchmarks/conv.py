"""Convolutions of ResNet-50, MobileNetV3, a YOLO, a text detector and ResNeXt, beside the product of the same
size. One thread, uint8 results.
"""

import numpy as np

import lowgemm

from .common import feature, operand
from .measure import named, ratio

#: Height and width, channels, filter size, outputs, stride, padding, groups.
SHAPES = {
    "56x56x64 3x3 64": (56, 64, 3, 64, 1, 1, 1),
    "28x28x128 3x3 128": (28, 128, 3, 128, 1, 1, 1),
    "14x14x256 3x3 256": (14, 256, 3, 256, 1, 1, 1),
    "7x7x512 3x3 512": (7, 512, 3, 512, 1, 1, 1),
    "40x40x64 3x3 s2 128": (40, 64, 3, 128, 2, 1, 1),
    "14x14x1024 1x1 256": (14, 1024, 1, 256, 1, 0, 1),
    "56x56x256 1x1 s2 512": (56, 256, 1, 512, 2, 0, 1),
    "224x224x3 7x7 s2 64": (224, 3, 7, 64, 2, 3, 1),
    "80x80x32 3x3 32": (80, 32, 3, 32, 1, 1, 1),
    "112x112x16 3x3 depthwise": (112, 16, 3, 16, 1, 1, 16),
    "112x112x64 3x3 s2 depthwise": (112, 64, 3, 64, 2, 1, 64),
    "28x28x120 5x5 depthwise": (28, 120, 5, 120, 1, 2, 120),
    "14x14x672 5x5 s2 depthwise": (14, 672, 5, 672, 2, 2, 672),
    "14x14x480 3x3 depthwise": (14, 480, 3, 480, 1, 1, 480),
    "320x320x3 3x3 s2 16": (320, 3, 3, 16, 2, 1, 1),
    "80x80x96 3x3 24": (80, 96, 3, 24, 1, 1, 1),
    "28x28x128 3x3 32 groups": (28, 128, 3, 128, 1, 1, 32),
    "8x8x3 3x3 8": (8, 3, 3, 8, 1, 1, 1),
}


def behind_a_line(x):
    """A copy that begins 16 bytes behind a cache line, where NumPy's large arrays begin. Smaller ones begin
    anywhere, and AMX's products take up to 1.4 times as long there as on a line: the ratio would be one or the
    other by chance.
    """
    room = np.empty(x.nbytes + 80, np.uint8)
    begin = (16 - room.ctypes.data) % 64
    there = room[begin : begin + x.nbytes].view(x.dtype).reshape(x.shape)
    there[...] = x
    return there


class Convolution:
    params = (list(SHAPES),)
    param_names = ("shape",)

    def setup(self, shape):
        size, channels, taps, outputs, stride, padding, groups = SHAPES[shape]
        conv, pack = feature("conv"), feature("pack_filters")
        rng = np.random.default_rng(0)
        image = operand(rng, "uint8", (1, size, size, channels))
        filters = pack(operand(rng, "int8", (taps, taps, channels // groups, outputs)), groups)
        output = [
            lowgemm.BiasAddition(np.arange(outputs)),
            lowgemm.Requantize(np.full(outputs, 1e-4), 128, np.uint8, rounding="onnx"),
        ]
        options = {
            "stride": stride,
            "padding": padding,
            "image_zero_point": 120,
            "output": output,
            "num_threads": 1,
        }
        self.call = lambda: conv(image, filters, **options)
        first = np.ascontiguousarray(image.transpose(0, 3, 1, 2))
        self.first = lambda: conv(first, filters, channels="first", **options)
        unsigned = pack(operand(rng, "uint8", (taps, taps, channels // groups, outputs)), groups)
        self.unsigned = lambda: conv(image, unsigned, filter_zero_point=128, **options)
        windows = self.call().shape[1] ** 2
        depth = taps * taps * channels // groups
        lhs = behind_a_line(operand(rng, "uint8", (windows, depth)))
        rhs = lowgemm.pack_rhs(operand(rng, "int8", (depth, outputs)))
        self.product = lambda: lowgemm.gemm(lhs, rhs, lhs_zero_point=120, output=output, num_threads=1)

    def time_conv(self, shape):
        self.call()

    def time_channels_first(self, shape):
        self.first()

    def time_uint8_filters(self, shape):
        self.unsigned()

    @named(
        "convolution time / product time",
        "Time relative to the product (of all channels, for a depthwise one)",
    )
    def track_time_ratio_to_product(self, shape):
        return ratio(self.call, self.product)
