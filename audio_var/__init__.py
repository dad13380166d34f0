"""The 1D backend: audio codecs, audio data, and the command line `audio-var`."""


def __getattr__(name: str):
    # torch takes seconds to import: only who asks for the model pays
    if name in ("load", "AudioModel"):
        from audio_var import api

        return getattr(api, name)
    raise AttributeError(f"module 'audio_var' has no attribute '{name}'")
