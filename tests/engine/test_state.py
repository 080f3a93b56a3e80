"""What a checkpoint keeps of the training aids, and a resumed run takes from it."""

import dataclasses

import torch

from d2ext.config.load import load_config
from d2ext.data.register import register_datasets, unregister_datasets
from d2ext.engine.checkpoint import save_checkpoint
from d2ext.engine.preflight import plan_run
from d2ext.engine.state import start_state


def test_scale_and_averages_go_on(repo, tiny, tmp_path):
    """float16 is refused on the CPU before it comes to this; its state is no matter of devices."""
    cfg = load_config(
        repo / "configs/balloon/mask_rcnn_lite0_fpn_balloon.py",
        [*tiny, "train.amp.enabled=True", "train.amp.dtype=bfloat16", "train.ema_decay=0.9"],
    )
    try:
        plan = plan_run(cfg, "state", overwrite=True, validate=False)
        cfg.train.amp.dtype = "float16"
        register_datasets(cfg.datasets)
        state = start_state(cfg, plan)
        assert state.start_iter == 0 and state.scaler.is_enabled()
        state.scaler.scale(torch.zeros(1))  # makes its scale
        state.scaler.update(new_scale=128.0)
        state.average.n_averaged.fill_(7)
        with torch.no_grad():
            next(state.average.module.parameters()).fill_(3.0)
        path = tmp_path / "model_0000002.pth"
        save_checkpoint(path, state.content(3, batch_size=2))
        resumed = start_state(cfg, dataclasses.replace(plan, resume=path))
        assert (resumed.start_iter, resumed.checkpoint_iter) == (3, 3)
        assert resumed.scaler.get_scale() == 128.0
        assert int(resumed.average.n_averaged) == 7  # it was switched on later than the run began
        assert (next(resumed.average.module.parameters()) == 3.0).all()
    finally:
        unregister_datasets()
