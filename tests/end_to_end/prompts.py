"""Twenty prompts on which our answers are compared with transformers' own, token by token."""

PROMPTS = (
    "What is the capital of France?",
    "Name three primary colors.",
    "Write one sentence about the sea.",
    "Count from one to ten.",
    "Why is the sky blue?",
    "Translate 'good morning' into Spanish.",
    "What is 7 times 8?",
    "Give me a short recipe for pancakes.",
    "Who wrote Romeo and Juliet?",
    "Explain gravity to a child.",
    "List four animals that live in the forest.",
    "What does a compiler do?",
    "Tell me a joke about cats.",
    "How do plants make food?",
    "Write a Python function that adds two numbers.",
    "What is the largest planet?",
    "Describe a rainy day in two sentences.",
    "What is the opposite of cold?",
    "Why do we sleep?",
    "Schreibe einen Satz über Berge: äöü ß €.",
)
