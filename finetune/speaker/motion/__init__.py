"""Motion pathways, each an entry of :data:`cavmae.finetune.speaker.motion.settings.MOTION`."""
