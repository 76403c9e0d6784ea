"""Brings adapters in, keeps them and lets them go.

Owns adapters' names, versions, sources, images and life. Must not know the forward pass.

AdapterPolicy decides, with the catalog of names and the ledger of images; LLM and AsyncAdapters carry its orders out.
Its verbs, one meaning each:

- publish, withdraw: a name gets a version, or loses it.
- hold, release: something begins to use an adapter, or ends. A held adapter is not unloaded.
- settle: follows a release, and orders what has become possible.
- drop: an image goes that can be read again.
- unload: an adapter that no version means goes, from the engine too.
- forget: what is known of an adapter is erased, for good.
- close: an object gives its descriptors, files and processes back to the system, for good.
- stop: a process or a task ends, and another may be started.
"""
