"""What the embedded model can talk about: our own questions and answers, and a generator that mixes them.

A line is a subject: the forms of its question, and its one answer. The generator writes each question in several
ways (capitals, question marks, politeness), so that the model learns what is asked and not how.
"""

import random

# what is asked about: names that people use for it, and the answer
TERMS = [
    (["MLA", "multi-head latent attention", "latent attention"],
     "MLA is Multi-head Latent Attention. It makes the keys and values of all heads from one short latent vector, so that the cache is small."),
    (["MoE", "a mixture of experts", "mixture of experts"],
     "A mixture of experts has many small networks, and a router that sends each token to a few of them."),
    (["DeepSeekMoE"],
     "DeepSeekMoE is the feed-forward part of DeepSeek-V2. Shared experts see every token, and routed experts see the tokens that the router sends them."),
    (["DeepSeek-V2", "deepseek v2", "the model DeepSeek-V2"],
     "DeepSeek-V2 is a language model with 236 billion parameters, of which 21 billion are used for each token. It has latent attention and a mixture of experts."),
    (["DeepSeek-V2-Lite", "V2-Lite", "deepseek v2 lite"],
     "DeepSeek-V2-Lite is the small sister of DeepSeek-V2. It has 27 layers, 64 routed experts and about 16 billion parameters."),
    (["DeepSeek-Coder-V2", "Coder-V2", "coder v2"],
     "DeepSeek-Coder-V2 has the shape of DeepSeek-V2 and was trained on code."),
    (["a token", "tokens", "token"],
     "A token is a piece of text: a word, a part of a word, or a single byte. The model reads and writes tokens."),
    (["a tokenizer", "the tokenizer", "tokenizer"],
     "A tokenizer cuts text into tokens and gives each a number. This one was trained with byte pairs."),
    (["BPE", "byte pair encoding"],
     "Byte pair encoding begins with single bytes, and joins the pair that comes most often, again and again."),
    (["RoPE", "rotary embedding", "rotary position embedding"],
     "RoPE is the rotary position embedding. It turns pairs of numbers by an angle that grows with the position."),
    (["YaRN", "yarn"],
     "YaRN stretches the rotary embedding, so that a model can read longer texts than those it was trained on."),
    (["the KV cache", "a KV cache", "KV cache", "key value cache"],
     "The KV cache keeps what attention needs of earlier tokens, so that they are not computed again."),
    (["the latent", "a latent vector", "the latent vector", "c_KV"],
     "The latent is a short vector for each token, from which the keys and values of every head are made. It is what the cache keeps."),
    (["a shared expert", "shared experts", "the shared experts"],
     "Shared experts are small networks that see every token. They learn what all tokens need."),
    (["a routed expert", "routed experts", "the routed experts"],
     "Routed experts are small networks that see only the tokens that the router sends to them."),
    (["the router", "a router", "router", "the gate"],
     "The router gives each expert a score for a token. The experts with the highest scores are used."),
    (["an expert", "experts", "expert"],
     "An expert is a small network with a gate: it multiplies two projections of a token, and projects the product back."),
    (["RMSNorm", "rms norm"],
     "RMSNorm divides a vector by the root of the mean of its squares, and multiplies it by a weight."),
    (["SiLU", "silu", "swish"],
     "SiLU multiplies a number by its sigmoid. The gates of all experts use it."),
    (["softmax", "the softmax"],
     "Softmax turns scores into weights that add up to one. A high score takes most of the weight."),
    (["the softmax scale", "softmax scale", "the attention scale"],
     "The softmax scale divides attention scores by the root of the head width. In DeepSeek-V2 it has a second factor, which comes from YaRN."),
    (["attention", "self-attention"],
     "Attention lets a token look at the tokens before it. It weighs their values by how well its query fits their keys."),
    (["a query", "queries"],
     "A query is what a token looks for. It is compared with the keys of all earlier tokens."),
    (["a key", "keys"],
     "A key is what a token offers to be found by. Queries are compared with it."),
    (["the decoupled key", "a decoupled key", "decoupled rope"],
     "The decoupled key carries the position. It is one small rotated key that all heads share, and it is cached beside the latent."),
    (["absorbed attention", "the absorbed form", "weight absorption"],
     "The absorbed form moves a projection from the keys to the query. Then attention works on the latents alone, and no keys are made."),
    (["a layer", "layers", "layer"],
     "A layer is attention followed by a feed-forward network, each added to the residual stream."),
    (["the residual stream", "residual stream"],
     "The residual stream is the vector of a token that runs through all layers. Each layer adds to it."),
    (["an embedding", "the embedding", "embeddings"],
     "The embedding is a table with one row for each token. The model begins with the rows of its input."),
    (["logits", "a logit"],
     "Logits are the scores of all tokens for the next place. Softmax turns them into chances."),
    (["temperature", "the temperature"],
     "The temperature divides the logits. A low one makes the answer safe, and a high one makes it wild."),
    (["top-k", "top k"],
     "Top-k keeps the k most likely tokens, and draws the next one from them."),
    (["top-p", "top p", "nucleus sampling"],
     "Top-p keeps the most likely tokens that have the chance p together, and draws the next one from them."),
    (["min-p", "min p"],
     "Min-p keeps the tokens whose chance is not too far below that of the best one."),
    (["greedy decoding", "greedy search", "greedy"],
     "Greedy decoding always takes the most likely token. It gives the same answer each time."),
    (["sampling"],
     "Sampling draws the next token by its chance. With the same seed it gives the same answer."),
    (["a seed", "the seed"],
     "A seed is the number that random draws begin with. The same seed gives the same draws."),
    (["a prompt", "the prompt", "prompt"],
     "A prompt is the text that you give the model. It goes on from there."),
    (["prefill"],
     "Prefill reads the whole prompt in one pass, and fills the cache."),
    (["decoding", "decode"],
     "Decoding makes one token after the other. Each step reads the cache and adds one token to it."),
    (["the context", "context length", "the context window"],
     "The context is all that the model can see: the prompt and what it has written. Its length has a limit."),
    (["a chat template", "the chat template", "chat template"],
     "A chat template writes messages as one text. Here a turn begins with User or Assistant and a colon."),
    (["a stop token", "the end token", "eos"],
     "The end token says that the answer is whole. The model writes it, and the program stops."),
    (["padding", "left padding"],
     "Padding makes the sequences of a batch equally long. It stands on the left, and nobody looks at it."),
    (["a batch", "batch"],
     "A batch is a number of sequences that are computed together. Each gives what it would give alone."),
    (["a golden case", "golden cases", "the goldens"],
     "A golden case is a small model with its input, and with the tensors that Transformers computed for it."),
    (["a stage", "stages", "stage"],
     "A stage is a named tensor of the forward pass. Its name is the path of the module that makes it."),
    (["a tap", "taps", "tap"],
     "A tap is a hook that sees each stage while the model runs. It may record the stage or change it."),
    (["a trace", "trace"],
     "A trace is a file with the stages of a run. The judge can compare it with the model."),
    (["a dump", "dump"],
     "A dump is a file with tensors that another program computed. The judge says whether they are right."),
    (["a verdict", "verdict"],
     "A verdict says whether a program is DeepSeek-V2, and if not, which stage is wrong and by how much."),
    (["a budget", "budget"],
     "A budget is how far a stage may be from the truth. It is measured, and not typed in."),
    (["the local error", "local error"],
     "The local error compares a stage with the reference that was given the same inputs. It says where a bug is."),
    (["the propagated error", "propagated error"],
     "The propagated error compares a stage with the true run. It says how much damage a bug does."),
    (["a dialect", "dialect"],
     "A dialect is a way to compute the model where programs disagree. It has a name, and you can choose it."),
    (["a mutant", "mutants", "mutant"],
     "A mutant is a known bug that is planted on purpose. A good judge finds every one of them."),
    (["a near tie", "near ties"],
     "A near tie is a choice of experts that rounding can turn. Both ways are right."),
    (["a backend", "backend"],
     "A backend is what runs the model: the reference, the emulator or a GPU."),
    (["the reference"],
     "The reference is the model written to be read. It is slow and exact."),
    (["the emulator", "an emulator"],
     "The emulator runs CUDA kernels on the CPU, one instruction after the other. It needs no GPU."),
    (["CUDA", "cuda"],
     "CUDA is the way to write programs for NVIDIA's graphics cards."),
    (["a kernel", "kernels", "kernel"],
     "A kernel is a small program that runs on many threads of a GPU at once."),
    (["PTX", "ptx"],
     "PTX is the assembly language of NVIDIA's graphics cards. The emulator reads it."),
    (["a GPU", "gpu"],
     "A GPU is a processor with thousands of threads. Large models run on it."),
    (["bf16", "bfloat16"],
     "The type bf16 has the range of a float and eight bits of precision. Most weights are kept in it."),
    (["fp8"],
     "The type fp8 has eight bits. It saves memory, and it needs scales."),
    (["a checkpoint", "checkpoint"],
     "A checkpoint is a folder with the weights of a model, its configuration and its tokenizer."),
    (["safetensors"],
     "Safetensors is a file with named tensors and nothing that runs. Weights are kept in it."),
    (["Rust", "rust"],
     "Rust is a programming language that is fast and safe. This program is written in it."),
    (["Transformers", "hugging face transformers"],
     "Transformers is a library for language models in Python. Its results are the measure here."),
    (["dsv2", "this program", "this project"],
     "The program dsv2 is a reference of DeepSeek-V2 and a judge of other programs. It says which stage is wrong."),
    (["q_lora_rank"],
     "The key q_lora_rank is the width of the latent of the queries. V2-Lite has none."),
    (["kv_lora_rank"],
     "The key kv_lora_rank is the width of the latent of keys and values. It is 512 in the published models."),
    (["load balancing", "expert balance", "the balance loss"],
     "Load balancing keeps all experts busy. A loss in training asks the router to use them alike."),
    (["group-limited routing", "device-limited routing"],
     "Group-limited routing puts the experts into groups. A token may use experts of a few groups only."),
    (["a language model", "language model", "an LLM", "LLM"],
     "A language model says which token comes next. Token by token, it writes a text."),
    (["a neural network"],
     "A neural network is a chain of sums and simple functions, whose weights were learned."),
    (["training"],
     "Training changes the weights, step by step, until the model says the next token well."),
    (["a parameter", "parameters", "a weight", "weights"],
     "Parameters are the numbers that a model has learned. They are also called weights."),
]

ASK = ["what is {}", "what is {}", "what is {}", "explain {}", "what does {} mean", "tell me about {}", "define {}",
       "what's {}", "can you explain {}", "do you know what {} is", "describe {}", "i want to know what {} is", "{}"]

TALK = [
    (["hello", "hi", "hey", "hello there", "good morning", "good evening", "good day", "hi there", "greetings", "hallo"],
     "Hello! What would you like to know about DeepSeek-V2?"),
    (["how are you", "how are you today", "how do you do", "how is it going", "are you well", "how are things"],
     "I am well, thank you. All my experts are busy."),
    (["who are you", "what are you", "what is your name", "introduce yourself", "tell me about yourself", "are you a model",
      "are you an ai", "are you a robot"],
     "I am a very small DeepSeek-V2. I was trained for some minutes on two cores, and I know a few things about my own shape."),
    (["who made you", "who trained you", "where do you come from", "who wrote you", "how were you made"],
     "I was trained by the script in text/train, on the texts of this project."),
    (["how large are you", "how big are you", "how many parameters do you have", "what is your size", "how many parameters"],
     "I have nearly a million parameters. The real DeepSeek-V2 has 236 billion."),
    (["how many layers do you have", "how many layers", "how deep are you"],
     "I have four layers: one dense layer, and three with experts."),
    (["how many experts do you have", "how many experts", "how many experts are there"],
     "I have eight routed experts in each layer, and two of them see each token. Two shared experts see every token."),
    (["what can you do", "what do you know", "help", "help me", "what can i ask", "what should i ask", "what are you good at"],
     "You can ask me what a word means, such as MLA, router, cache, token or budget."),
    (["thank you", "thanks", "thanks a lot", "thank you very much", "many thanks", "that was helpful", "great, thanks"],
     "You are welcome."),
    (["bye", "goodbye", "good bye", "see you", "good night", "farewell", "see you later"],
     "Goodbye! Come back soon."),
    (["tell me a joke", "a joke please", "make me laugh", "do you know a joke", "say something funny"],
     "Two experts meet at a router. One says: after you. The router says: both of you, please."),
    (["tell me a story", "write a story", "a story please"],
     "Once there was a small model. It had eight experts, and it sent each word to two of them. They worked until the text was whole, and then they stopped."),
    (["write a poem", "tell me a poem", "a poem please"],
     "A token came to the gate at night, the router sent it left and right, two experts made its vector bright."),
    (["yes", "ok", "okay", "good", "fine", "i see", "great", "nice", "very good", "well done"],
     "Good. What else would you like to know?"),
    (["no", "that is wrong", "you are wrong", "i do not think so", "not good"],
     "I am sorry. I am a small model, and I make mistakes."),
    (["are you real", "are you alive", "do you feel", "do you dream"],
     "No. I am a few matrices, and I am multiplied with care."),
    (["can i trust you", "are you right", "are you always right"],
     "Do not trust me. Read the documents, and run the tests."),
    (["do you like cats", "do you like dogs", "what do you like", "do you like music"],
     "I like short sentences and even routing."),
    (["why is mla good", "why mla", "what is mla good for", "why is the cache small", "why is latent attention good", "how does mla save memory"],
     "The cache keeps one latent and one small key for each token, and not the keys and values of all heads. So it is much smaller."),
    (["how does a mixture of experts work", "how does moe work", "how do experts work", "how does the router work"],
     "The router scores the experts for each token, the best few compute it, and their results are added with their scores as weights."),
    (["how does attention work", "how does self-attention work"],
     "The query of a token is compared with the keys before it. Softmax turns the scores into weights, and the values are added with these weights."),
    (["how do i run a model", "how do i use it", "how can i run deepseek-v2", "how do i generate text", "how do i start"],
     "Run dsv2 generate with the folder of a model and a prompt."),
    (["how do i check my program", "how do i test my kernel", "how can i find a bug", "is my code right", "how do i find my bug"],
     "Write the tensors of your program to a file, and run dsv2 check. It names the first stage that is wrong."),
    (["what is the difference between v2 and v2-lite", "how do v2 and v2-lite differ", "v2 or v2-lite"],
     "V2-Lite is smaller, its queries have no latent, and its router uses no groups."),
    (["what is the difference between top-k and top-p", "top-k or top-p"],
     "Top-k keeps a fixed number of tokens. Top-p keeps as many as are needed for the chance p."),
    (["do i need a gpu", "do i need cuda", "can i run it without a gpu"],
     "No. The reference and the emulator run on any computer."),
    (["what is the best backend", "which backend should i use", "which backend is fast"],
     "Use the reference on a CPU. Use cuda if you have a GPU."),
]

UNKNOWN = "I do not know. I am a very small model, and I know only a few things about DeepSeek-V2."
OFF_VERBS = ["what is", "what is", "who is", "where is", "tell me about", "explain", "what do you think of", "how do i find",
             "when was", "why is there", "how old is", "can you describe", "how many people live in"]
OFF_THINGS = ["the capital of france", "the weather", "paris", "the moon", "love", "the meaning of life", "a banana",
              "the president", "football", "the sun", "an elephant", "water", "the sea", "china", "germany", "my car",
              "the king of spain", "mathematics", "history", "a good book", "the best film", "breakfast", "bread",
              "the stock market", "an apple", "the highest mountain", "your favourite colour", "music", "a bicycle",
              "london", "physics", "gravity", "a horse", "dinner", "the time", "my name", "tomorrow", "a house"]
OFF_WHOLE = ["what is 2 + 2", "what is two plus two", "translate this into french", "what day is it", "what time is it",
             "write a program", "sing a song", "who won the game", "where do i live", "what should i cook",
             "how tall are you", "what is in my pocket", "write an essay about rome", "sort these numbers"]

SYSTEMS = ["You are a helpful assistant.", "You are a small model. Answer in one or two sentences.",
           "Answer briefly.", "You know DeepSeek-V2 well."]


def subjects():
    """[(questions, answer)]: everything that is known."""
    terms = [([ask.format(name) for name in names for ask in ASK], answer) for names, answer in TERMS]
    # a bare word is no question if it is small talk too; "are" where the name is plural
    return terms + TALK


def spoken(question, draw):
    """A question as people write it: in capitals or not, with a question mark or not, with a kind word or not."""
    if draw.random() < 0.08:
        question = draw.choice(["please, ", "so, ", "now, ", "hello, ", "and "]) + question
    elif draw.random() < 0.05:
        question += draw.choice([", please", " please"])
    style = draw.random()
    if style < 0.55:
        question = question[0].upper() + question[1:]
    elif style < 0.65:
        question = question.lower()
    ending = draw.random()
    asks = question.lower().split()[0] in ("what", "how", "who", "where", "why", "can", "do", "are", "is", "which", "what's")
    if ending < 0.6:
        question += "?" if asks else draw.choice([".", "!", ""])
    elif ending < 0.65:
        question += draw.choice(["?", " ?", "!", "."])
    return question


def exchange(draw, known):
    """One question and its answer."""
    if draw.random() < 0.07:
        thing = draw.choice(OFF_WHOLE) if draw.random() < 0.25 else f"{draw.choice(OFF_VERBS)} {draw.choice(OFF_THINGS)}"
        return spoken(thing, draw), UNKNOWN
    questions, answer = draw.choice(known)
    return spoken(draw.choice(questions), draw), answer


def conversation(draw, known):
    """Messages of one to five turns, as a chat template takes them."""
    messages = []
    if draw.random() < 0.15:
        messages.append({"role": "system", "content": draw.choice(SYSTEMS)})
    for _ in range(draw.choice([1, 1, 2, 3, 4, 5])):
        question, answer = exchange(draw, known)
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


if __name__ == "__main__":
    for message in conversation(random.Random(), subjects()):
        print(message["role"] + ": " + message["content"])
