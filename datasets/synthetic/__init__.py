"""Talkers: rendered talking heads with every voice and every pixel known.

From top to bottom: ``settings`` (what is asked for), ``roster`` and ``population`` (who there is),
``voices`` (from ``espeak`` and ``words``, or from ``recordings``), ``script`` (what happens in a
clip), ``mixing`` (its sound), ``articulation`` and ``motion`` (how mouths and heads move),
``looks``, ``face``, ``mouth``, ``covers``, ``figure`` (people), ``backdrop`` and ``stage`` (the
whole picture, on a ``canvas`` that keeps masks and drawing together), ``film`` (files).
"""
