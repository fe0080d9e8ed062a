"""What stands before LiteLLM: a request's way in, and the wording of what goes out.

LiteLLM finds two names here, by its configuration and its unit:

* ``user_api_key_auth`` (``general_settings.custom_auth``) tells LiteLLM which user the request
  belongs to that ``Front`` has let in;
* ``set_up`` (``LITELLM_WORKER_STARTUP_HOOKS``) puts ``Front`` before LiteLLM's application.

One module for each subject: ``keys``, ``routes``, ``fields`` and ``shapes`` (what a request may
hold), ``headers``, ``body``, ``admission`` (limits plug in there), ``errors``, ``answer`` and
``metering`` (the way out), ``front`` (the order of it all), ``replicas``, ``connections``.
Only ``litellm_side`` knows LiteLLM, and imports it when it is called.
"""

from .litellm_side import set_up, user_api_key_auth

__all__ = ["set_up", "user_api_key_auth"]
