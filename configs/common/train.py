"""Training options shared by all recipes; a recipe overrides single fields.

Field names are those of Detectron2's own configs/common/train.py; the additions are marked.
"""

train = dict(
    output_dir=None,  # None: work_dirs/<name of the config file>
    init_checkpoint="",  # weights to start from (the guide's load_from); iteration starts at 0
    max_epochs=12,  # added: length; this or max_iter, overriding one clears the other
    max_iter=None,  # length in iterations
    eval_period="1 epoch",  # iterations, or "N epochs"; 0 turns periodic evaluation off
    checkpointer=dict(
        period="1 epoch",  # iterations, or "N epochs"; 0: at the end only
        max_to_keep=3,  # of the run's own, the newest; 0 or -1 keeps all
        asynchronous=False,  # added: written beside the training, from a copy
    ),
    bad_loss=dict(
        policy="stop",  # added: at a loss that is NaN or infinite; "skip" leaves the step out
        max_skipped=10,  # that many steps of a run; one more ends it
    ),
    bad_images="stop",  # added: at an image that cannot be read; "skip" takes another in its place
    log_period=20,  # iterations between two lines of numbers
    hooks=[],  # added: hooks of your own, L(MyHook)(...); called before a step is logged and saved
    warmup_iters=500,  # added: iterations of linear warm-up; at most half of the run
    seed=0,  # added: data order, augmentation, proposal sampling and initial weights follow from it
    reference_world_size=8,  # added: workers that optimizer.lr was tuned for
    reference_batch_size=16,  # added: images per optimizer step, over all of them, for which it was
    accumulate=1,  # added: micro-batches per optimizer step and worker
    auto_scale_lr=dict(
        enabled=False,  # added: as --auto-scale-lr, batch and rate follow the workers
        rule=None,  # of batch to rate; None: as suits the optimizer [linear or sqrt or null]
    ),
    dist=dict(  # added: the guide's dist_params
        backend=None,  # of the processes' exchange; None: as suits the device
        port=None,  # of rank 0's machine; None: a free one
        url=None,  # where processes meet, tcp://HOST:PORT; --dist-url wins [str or null]
    ),
    # added: training aids, all off
    amp=dict(
        enabled=False,  # mixed precision
        dtype="float16",  # of mixed precision; "bfloat16" works on the CPU, too
    ),
    clip_grad_norm=None,  # upper bound of the gradients' L2 norm
    ema_decay=None,  # moving average of the weights, for evaluation; 0.999 suits some 1000 steps
    best=dict(
        # the result that decides what is model_best.pth, "coco/segm/AP" of the first val set, or
        # "<dataset>/coco/segm/AP" of another
        metric=None,
        mode="max",  # whether the metric's highest or lowest value is best
    ),
    early_stopping_patience=None,  # evaluations without a better train.best.metric
    sync_bn=False,  # BatchNorm over all workers, where the model's norm is BN
    compile=dict(
        enabled=False,  # torch.compile of the backbone
        backend="inductor",  # the compiler
        # one program for all shapes; False: one for each; None: as torch sees fit [bool or null]
        dynamic=None,
        size_divisibility=None,  # pixels; images padded to multiples make fewer shapes
    ),
    deterministic=False,  # repeatable GPU kernels, also where slower
    ddp=dict(
        broadcast_buffers=False,  # rank 0's buffers to all before each step
        find_unused_parameters=False,  # for models that use some parameters at times only
        fp16_compression=False,  # gradients travel as float16
    ),
    device="cuda",  # without a visible GPU the CPU is used, and the log says so
    # added: memory layout of the convolutions; null takes it on CPUs with AVX-512, where it is
    # faster for ResNets, too [bool or null]
    channels_last=None,
    # added: on the CPU RoIAlign, RPN's loss and frozen norms work faster (d2ext/modeling), equal
    # but for rounding; False takes Detectron2's own
    fast_layers=True,
)
