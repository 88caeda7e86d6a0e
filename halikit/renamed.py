"""Old names of settings. Old runs load by this table, and elsewhere an old name is refused with the new one."""

from __future__ import annotations

__all__ = ["GONE", "RENAMED"]

RENAMED = {
    "training.averaging": "training.ema_decay",
    "training.objective": "game.objective",
    "training.sleep": "game.sleep_weights",
    "training.final_input_noise": "game.final_input_noise",
    "training.d_steps": "game.discriminator_steps",
    "training.g_steps": "game.generator_steps",
    "training.gradient_penalty": "game.gradient_penalty",
    "training.penalty_every": "game.penalty_every",
    "training.penalised": "game.penalised_joint",
    "training.learning_rate": "optimiser.learning_rate",
    "training.discriminator_learning_rate": "optimiser.discriminator_learning_rate",
    "training.betas": "optimiser.betas",
    "training.final_learning_rate": "optimiser.final_rate_share",
    "training.decay_from": "optimiser.decay_from",
    "training.labels": "labels.number",
    "training.supervised_weight": "labels.weight",
    "training.propagation": "labels.propagation_neighbours",
    "training.consistency": "labels.consistency_weight",
    "training.consistency_batch": "labels.consistency_batch_size",
    "training.consistency_threshold": "labels.pseudo_label_threshold",
    "training.consistency_graph": "labels.propagate_every",
    "training.log_every": "record.log_every",
    "training.evaluate_every": "record.evaluate_every",
    "training.checkpoint_every": "record.checkpoint_every",
    "training.keep": "record.keep_checkpoints",
    "training.max_skipped": "record.max_skipped_steps",
    "training.device": "hardware.device",
    "training.precision": "hardware.precision",
    "training.threads": "hardware.threads",
    "training.compile": "hardware.compile",
    "training.memory_format": "hardware.memory_format",
    "training.accumulate": "hardware.accumulate",
    "training.recompute": "hardware.recompute",
    "training.prefetch": "hardware.prefetch",
    "training.sync_batch_norm": "hardware.sync_batch_norm",
    "training.timeout": "hardware.timeout",
    "discriminator.form": "discriminator.games",
}

# Settings that are gone, and what there is instead.
GONE = {
    "training.grow_every": "since 0.2.0 all levels train at once",
    "training.settled_rate": "since 0.2.0 all levels train at once, at one rate",
}
