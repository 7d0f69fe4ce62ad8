"""Separation networks, each an entry of :data:`cavmae.finetune.separators.settings.SEPARATORS`."""
