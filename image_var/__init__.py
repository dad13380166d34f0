"""The 2D backend: image autoencoder, image data, published image models, and the command line `image-var`."""


def __getattr__(name: str):
    # torch takes seconds to import: only who asks for the model pays
    if name in ("load", "ImageModel"):
        from image_var import api

        return getattr(api, name)
    raise AttributeError(f"module 'image_var' has no attribute '{name}'")
