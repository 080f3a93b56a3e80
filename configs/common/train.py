"""Training options shared by all recipes; a recipe overrides single fields.

Field names are those of Detectron2's own configs/common/train.py; the additions are marked.
"""

train = dict(
    output_dir=None,  # None: work_dirs/<name of the config file>
    init_checkpoint="",  # weights to start from (the guide's load_from); iteration starts at 0
    max_epochs=12,  # added: set either this or max_iter; overriding one clears the other
    max_iter=None,  # the same in iterations
    eval_period="1 epoch",  # iterations, or "N epochs"; 0 turns periodic evaluation off
    checkpointer=dict(
        period="1 epoch",  # as of eval_period; 0: at the end only
        max_to_keep=3,  # of the run's own, the newest; 0 or -1 keeps all
        asynchronous=False,  # added: written beside the training, from a copy
    ),
    bad_loss=dict(
        policy="stop",  # added: at a loss that is NaN or infinite; "skip" leaves the step out
        max_skipped=10,  # steps in a run
    ),
    bad_images="stop",  # added: where one cannot be read; "skip" takes another in its place
    log_period=20,  # iterations
    warmup_iters=500,  # added: iterations of linear warm-up; at most half of the run
    seed=0,  # added: data order, augmentation, proposal sampling and initial weights follow from it
    reference_world_size=8,  # added: workers that optimizer.lr was tuned for
    reference_batch_size=16,  # added: images per optimizer step over all of them, likewise
    accumulate=1,  # added: micro-batches per optimizer step and worker
    auto_scale_lr=dict(
        enabled=False,  # added: as --auto-scale-lr, batch and rate follow the workers
        rule=None,  # of the rate: "linear" or "sqrt"; None: as suits the optimizer
    ),
    dist=dict(  # added: the guide's dist_params
        backend=None,  # "nccl" or "gloo"; None: as suits the device
        port=None,  # of rank 0's machine; None: a free one
        url=None,  # where processes meet, tcp://HOST:PORT; --dist-url wins
    ),
    # added: training aids, all off
    amp=dict(
        enabled=False,  # mixed precision
        dtype="float16",  # or "bfloat16", also on the CPU
    ),
    clip_grad_norm=None,  # upper bound of the gradients' L2 norm
    ema_decay=None,  # moving average of the weights, for evaluation; 0.999 suits some 1000 steps
    best=dict(
        # the result that decides what is model_best.pth, "coco/segm/AP" of the first val set, or
        # "<dataset>/coco/segm/AP" of another
        metric=None,
        mode="max",  # or "min": which is better
    ),
    early_stopping_patience=None,  # evaluations without a better train.best.metric
    sync_bn=False,  # BatchNorm over all workers, where the model's norm is BN
    compile=dict(
        enabled=False,  # torch.compile of the backbone
        backend="inductor",  # its compiler
        dynamic=None,  # one program for all shapes; False: one for each; None: as torch sees fit
        size_divisibility=None,  # pixels; images padded to multiples make fewer shapes
    ),
    deterministic=False,  # repeatable GPU kernels, also where slower
    ddp=dict(
        broadcast_buffers=False,  # rank 0's to all before each step
        find_unused_parameters=False,  # for models that leave some out at times
        fp16_compression=False,  # of the gradients on their way
    ),
    device="cuda",  # without a visible GPU the CPU is used, and the log says so
    channels_last=False,  # added: memory layout of the convolutions; faster for the lite0 recipes
    # added: on the CPU RoIAlign, RPN's loss and frozen norms work faster (d2ext/modeling), equal
    # but for rounding; False takes Detectron2's own
    fast_layers=True,
)
