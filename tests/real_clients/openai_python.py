"""A tool loop with openai-python, streaming. BASE_URL says where."""

import os

import openai

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"The {name} of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
    for name in ("weather", "population")
]
RESULTS = {"weather": "sun", "population": "2800000"}

client = openai.OpenAI(base_url=os.environ["BASE_URL"], api_key="none", max_retries=0)
messages = [
    {"role": "system", "content": "Use the tools."},
    {"role": "user", "content": "How is Rome?"},
]
while True:
    with client.chat.completions.stream(model="gpt-5", messages=messages, tools=TOOLS) as stream:
        message = stream.get_final_completion().choices[0].message
    messages.append(message.to_dict())
    for call in message.tool_calls or ():
        content = RESULTS[call.function.name]
        messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
    if not message.tool_calls:
        print(message.content)
        break
