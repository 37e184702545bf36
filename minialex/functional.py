"""Each op and its backward as a function on arrays, to play with one layer or to test it from outside.

Layout is NHWC for images and HWIO, (KH, KW, C/groups, O), for filters; arrays are float32 on devices "cpu" and "cuda",
float64 on "numpy" (the references). Results are arrays of the device: numpy, or CuPy on "cuda". Arguments may also be arrays
of other libraries that numpy can read, such as PyTorch's on the CPU, and numbers numpy's or Python's.
"""

from .optim import adam_update, average_update, clip_gradients, sgd_update
from .ops.augment import augment_images
from .ops.conv import conv2d, conv2d_backward
from .ops.conv import fold as col2im
from .ops.conv import unfold as im2col
from .ops.dense import dense, dense_backward
from .ops.dropout import dropout, dropout_backward
from .ops.lrn import local_response_norm, local_response_norm_backward
from .ops.pool import max_pool2d, max_pool2d_backward
from .ops.relu import relu, relu_backward
from .ops.softmax import softmax, softmax_cross_entropy
from .ops.transpose import transpose, transpose_backward

__all__ = ["adam_update", "augment_images", "average_update", "clip_gradients", "col2im", "conv2d", "conv2d_backward", "dense", "dense_backward", "dropout", "dropout_backward", "im2col",
           "local_response_norm", "local_response_norm_backward", "max_pool2d", "max_pool2d_backward", "relu", "relu_backward",
           "sgd_update", "softmax", "softmax_cross_entropy", "transpose", "transpose_backward"]
