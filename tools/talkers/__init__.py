"""Talkers: rendered talking heads with every voice and every pixel known.

From top to bottom: ``settings`` (what is asked for), ``voices`` (``espeak``, ``words``,
``recordings``), ``population`` (who there is), ``script`` (what happens in a clip), ``articulation``
and ``motion`` (how mouths and heads move), ``mixing`` (the sound), ``looks``, ``face``, ``mouth``,
``covers``, ``backdrop`` and ``stage`` (the picture), ``film`` (files).
"""
