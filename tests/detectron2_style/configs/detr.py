"""A DETR-like model with the keys of detrex's configs."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.solver.build import get_default_optimizer_params
from torch import nn, optim

from tests.detectron2_style.tiny_detr import DetrMapper, GreedyMatcher, SetCriterion, TinyDetr
from tests.detectron2_style.tiny_models import tiny_stages

from .common import dataloader, lr_multiplier, train

model = L(TinyDetr)(
    backbone=L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=8, norm="FrozenBN"),
        stages=L(tiny_stages)(norm="FrozenBN"),
        out_features=["res5"],
        freeze_at=1,
    ),
    transformer=L(nn.Transformer)(
        d_model=32,
        nhead=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        dim_feedforward=32,
        dropout=0.1,
        batch_first=True,
    ),
    embed_dim=32,
    num_classes=2,
    num_queries=6,
    criterion=L(SetCriterion)(
        num_classes=2,
        matcher=L(GreedyMatcher)(num_classes=2, cost_class=1.0, cost_bbox=5.0),
        weight_dict={"loss_class": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0},
    ),
    pixel_mean=[123.675, 116.280, 103.530],
    pixel_std=[58.395, 57.120, 57.375],
    device="cuda",
)

dataloader.train.mapper = L(DetrMapper)(
    augmentation=[
        L(T.RandomFlip)(),
        L(T.ResizeShortestEdge)(short_edge_length=(56, 64), max_size=96, sample_style="choice"),
    ],
    augmentation_with_crop=[
        L(T.RandomFlip)(),
        L(T.RandomCrop)(crop_type="absolute_range", crop_size=(48, 64)),
        L(T.ResizeShortestEdge)(short_edge_length=(56, 64), max_size=96, sample_style="choice"),
    ],
    is_train=True,
    img_format="RGB",
)
dataloader.test.mapper = L(DetrMapper)(
    augmentation=[L(T.ResizeShortestEdge)(short_edge_length=64, max_size=96)],
    augmentation_with_crop=None,
    is_train=False,
    img_format="RGB",
)

optimizer = L(optim.AdamW)(
    params=L(get_default_optimizer_params)(
        base_lr="${..lr}",
        weight_decay_norm=0.0,
        lr_factor_func=lambda module_name: 0.1 if "backbone" in module_name else 1,
    ),
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=1e-4,
)

train.clip_grad = dict(enabled=True, params=dict(max_norm=0.1, norm_type=2))
train.model_ema = dict(enabled=False, decay=0.999, device="", use_ema_weights_for_eval_only=False)
train.wandb = dict(enabled=False, params=dict(dir="./wandb_output", project="tiny"))
train.fast_dev_run = dict(enabled=False)
train.seed = -1
train.ddp.find_unused_parameters = False
dataloader.evaluator.output_dir = train.output_dir
