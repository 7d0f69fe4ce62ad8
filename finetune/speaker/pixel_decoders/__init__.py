"""Pixel decoders: entries of `cavmae.finetune.speaker.pixel_decoders.settings.PIXEL_DECODERS`."""
