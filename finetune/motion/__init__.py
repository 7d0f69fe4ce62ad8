"""Motion pathways, each an entry of :data:`cavmae.finetune.motion.settings.MOTION`."""
