class VLLMError(Exception):
    pass


class VLLMClientError(VLLMError):
    pass
