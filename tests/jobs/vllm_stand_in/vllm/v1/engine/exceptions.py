from vllm.exceptions import VLLMError


class EngineDeadError(VLLMError):
    pass
