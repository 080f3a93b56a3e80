"""Training options shared by all recipes; a recipe overrides single fields.

Field names are those of Detectron2's own configs/common/train.py; the additions are marked.
"""

train = dict(
    output_dir=None,  # None: work_dirs/<name of the config file>
    init_checkpoint="",  # weights to start from (the guide's load_from); iteration starts at 0
    max_epochs=12,  # added: set either this or max_iter; overriding one clears the other
    max_iter=None,
    eval_period="1 epoch",  # iterations, or "N epochs"; 0 turns periodic evaluation off
    # max_to_keep 0 or -1 keeps all; added: asynchronous, written beside the training from a copy
    checkpointer=dict(period="1 epoch", max_to_keep=3, asynchronous=False),
    # added: a loss that is NaN or infinite, and an image that cannot be read: "stop", or "skip" the
    # step (so many in a run at most) and take another image
    bad_loss=dict(policy="stop", max_skipped=10),
    bad_images="stop",
    log_period=20,  # iterations
    warmup_iters=500,  # added: iterations of linear warm-up; at most half of the run
    seed=0,  # added: data order, augmentation, proposal sampling and initial weights follow from it
    # added: what optimizer.lr was tuned for, workers and images per optimizer step in all
    reference_world_size=8,
    reference_batch_size=16,
    accumulate=1,  # added: micro-batches per optimizer step and worker
    # added: --auto-scale-lr; rule linear or sqrt, None leaves it to the optimizer
    auto_scale_lr=dict(enabled=False, rule=None),
    # added: where processes meet (the guide's dist_params); --dist-url wins; the backend follows
    # from the device
    dist=dict(backend=None, port=None, url=None),
    # added: training aids, all off
    amp=dict(enabled=False, dtype="float16"),  # mixed precision; bfloat16 also on the CPU
    clip_grad_norm=None,  # upper bound of the gradients' L2 norm
    ema_decay=None,  # moving average of the weights, for evaluation; 0.999 suits some 1000 steps
    # model_best.pth by a result of the first val set, "coco/segm/AP"; "<dataset>/..." of another
    best=dict(metric=None, mode="max"),
    early_stopping_patience=None,  # evaluations without a better train.best.metric
    sync_bn=False,  # BatchNorm over all workers, where the model's norm is BN
    # torch.compile of the backbone; images padded to multiples make fewer shapes to compile
    compile=dict(enabled=False, backend="inductor", dynamic=None, size_divisibility=None),
    deterministic=False,  # repeatable GPU kernels, also where slower
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    device="cuda",  # without a visible GPU the CPU is used, and the log says so
    channels_last=True,  # added: memory layout of the convolutions, faster on CPU and GPU
    # added: on the CPU RoIAlign, RPN's loss and frozen norms work faster (d2ext/modeling), equal
    # but for rounding; False takes Detectron2's own
    fast_layers=True,
)
