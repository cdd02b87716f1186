// OpenAI's JavaScript client against a server of ours: node client.mjs BASE_URL
import assert from 'node:assert/strict'
import OpenAI from 'openai'

const client = new OpenAI({ baseURL: process.argv[2], apiKey: 'none', maxRetries: 0 })
const ask = { model: 'default', messages: [{ role: 'user', content: 'Which bird hides food?' }], max_tokens: 12, documents: ['Ravens hide food.'], tessera: { attention: 'block' } }

const whole = await client.chat.completions.create(ask)
assert.equal(whole.usage.completion_tokens, 12)
assert.equal(whole.tessera.blocks.length, 3)

let text = '', last
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta?.content ?? ''
  last = chunk
}
assert.equal(text, whole.choices[0].message.content)
assert.equal(last.usage.completion_tokens, 12)
assert.ok(last.usage.prompt_tokens_details.cached_tokens > 0)

const answer = await client.responses.create({ model: 'default', input: ask.messages[0].content, max_output_tokens: 12, documents: ask.documents, tessera: ask.tessera })
assert.equal(answer.output_text, text)
let pieces = ''
for await (const event of await client.responses.create({ model: 'default', input: ask.messages[0].content, max_output_tokens: 12, documents: ask.documents, tessera: ask.tessera, stream: true })) {
  if (event.type === 'response.output_text.delta') pieces += event.delta
}
assert.equal(pieces, text)

const parameters = { type: 'object', properties: { bird: { enum: ['raven', 'owl'] } }, required: ['bird'], additionalProperties: false }
const tools = [{ type: 'function', function: { name: 'count', parameters } }]
const wanted = { model: 'default', messages: ask.messages, max_tokens: 200, tools, tool_choice: 'required' }
const called = (await client.chat.completions.create(wanted)).choices[0]
assert.equal(called.finish_reason, 'tool_calls')
assert.ok(['raven', 'owl'].includes(JSON.parse(called.message.tool_calls[0].function.arguments).bird))
const streamed = await client.chat.completions.stream(wanted).finalChatCompletion()
assert.deepEqual(streamed.choices[0].message.tool_calls[0].function, called.message.tool_calls[0].function)

const scored = await client.completions.create({ model: 'default', prompt: 'Ravens', max_tokens: 0, echo: true, logprobs: 1 })
assert.equal(scored.choices[0].logprobs.token_logprobs[0], null)
assert.deepEqual((await client.models.list()).data.map(m => m.id), ['tiny-tied'])
await assert.rejects(client.chat.completions.create({ ...ask, n: 0 }), e => e.status === 400 && /^400 n: /.test(e.message))
await assert.rejects(client.models.retrieve('other'), e => e.status === 404 && e.code === 'model_not_found')
console.log('javascript ok')
