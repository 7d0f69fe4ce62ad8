"""Synthetic talking heads with ground-truth voices and masks.

In the order of the data: ``settings`` (options), ``speaker_discovery`` and ``population``
(speakers), ``voices`` (from ``espeak`` and ``words``, or from ``recordings``), ``script`` (cast and
events of a clip) and ``staging`` (places and movements), ``mixing`` (audio), ``articulation``
(mouth tracks) and ``motion`` (head, walk and camera movement), ``appearance``, ``surface``
(textures), ``projection`` (turned heads), ``face``, ``mouth``, ``occlusions``, ``hands`` and
``figure`` (people), ``scenery``, ``distractors``, ``backdrop`` and ``stage`` (whole frames, on a
``canvas`` that keeps masks and drawing together), ``clip_writer`` (files), ``sheet`` (contact
sheet), ``corpus`` (all clips of a data set).
"""
