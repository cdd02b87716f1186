// The page of `tessera serve`. It speaks the server's own API and keeps nothing but the chat on the screen.

const $ = id => document.getElementById(id)
const make = (tag, fields = {}, ...children) => {
  const e = Object.assign(document.createElement(tag), fields)
  e.append(...children)
  return e
}

// ---- asking ----

let messages = [] // of the chat, as the API takes them
let running = null // AbortController of the answer under way

$('question').addEventListener('submit', event => {
  event.preventDefault()
  const text = $('text').value.trim()
  if (text && !running) ask(text)
})
$('text').addEventListener('keydown', event => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
    event.preventDefault()
    $('question').requestSubmit()
  }
})
$('stop').addEventListener('click', () => running?.abort())
$('clear').addEventListener('click', () => {
  running?.abort()
  messages = []
  $('turns').replaceChildren()
  $('sources').hidden = true
  $('welcome').hidden = false
  $('text').focus()
})

// ask adds a turn to the chat and shows the answer as it comes.
async function ask(text) {
  const answer = make('div', { className: 'answer waiting' })
  const turn = make('li', {}, make('div', { className: 'asked', textContent: text }), answer)
  $('turns').append(turn)
  $('welcome').hidden = true
  $('text').value = ''
  working(new AbortController())
  messages.push({ role: 'user', content: text })
  let said = '', citations = []
  try {
    const tessera = { attention: $('attention').value }
    if ($('collection').value) tessera.collection = $('collection').value
    const response = await call('/v1/chat/completions', {
      method: 'POST', signal: running.signal,
      body: JSON.stringify({ model: 'default', messages, stream: true, stream_options: { include_usage: true }, tessera }),
    })
    for await (const chunk of events(response)) {
      const piece = chunk.choices?.[0]?.delta?.content
      if (piece) {
        said += piece
        answer.textContent = said
        turn.scrollIntoView({ block: 'nearest' })
      }
      citations = chunk.choices?.[0]?.citations ?? citations
      if (chunk.tessera) {
        receipt(turn, chunk.tessera, citations)
        cite(answer, said, citations, chunk.tessera.documents ?? [])
      }
    }
  } catch (error) {
    if (error.name !== 'AbortError') {
      messages.pop()
      turn.remove()
      $('text').value = text
      fail(error)
    }
  } finally {
    answer.classList.remove('waiting')
    working(null)
  }
  if (said) messages.push({ role: 'assistant', content: said })
}

function working(controller) {
  running = controller
  $('send').hidden = !!controller
  $('stop').hidden = !controller
}

// events yields the documents of a server-sent stream.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let held = ''
  for (;;) {
    const { value, done } = await reader.read()
    if (done) return
    const lines = (held + value).split('\n')
    held = lines.pop()
    for (const line of lines) {
      if (!line.startsWith('data:')) continue
      const data = line.slice(5).trim()
      if (data === '[DONE]') return
      const document = JSON.parse(data)
      if (document.error) throw new Error(document.error.message)
      yield document
    }
  }
}

// receipt draws the prompt as its blocks, and lists the passages beside the answer.
function receipt(turn, r, citations) {
  const strip = make('div', { className: 'strip' })
  const count = { computed: 0, ram: 0, disk: 0 }
  const passages = new Map((r.documents ?? []).map(d => [d.id, d]))
  for (const b of r.blocks ?? []) {
    const kind = b.kind === 'query' ? 'query' : b.source
    if (b.kind !== 'query') count[b.source] = (count[b.source] ?? 0) + b.tokens
    const what = b.title || b.doc || b.kind
    const cell = make('button', { type: 'button', className: kind, title: `${what}: ${b.tokens} tokens, ${b.kind === 'query' ? 'the question' : b.source}` })
    cell.style.flexGrow = b.tokens
    cell.setAttribute('aria-label', cell.title)
    if (b.kind === 'passage') cell.addEventListener('click', () => open(passages.get(b.doc) ?? b, citations))
    strip.append(cell)
  }
  const entries = Object.entries(count).filter(([, tokens]) => tokens)
    .map(([source, tokens]) => make('span', {}, make('i', { className: source }), `${tokens} tokens ${({ computed: 'computed', ram: 'from memory', disk: 'from disk' })[source] ?? source}`))
  const t = r.timings ?? {}, f = r.flops ?? {}
  const cost = f.full && f.total ? `; full attention: ${(f.full / f.total).toFixed(1)} times the work` : ''
  turn.append(strip, make('div', { className: 'key' }, ...entries,
    make('span', { textContent: `first token after ${Math.round(t.ttft_ms)} ms${cost}` }),
    make('span', { textContent: `${r.attention} attention` })))

  const list = (r.blocks ?? []).filter(b => b.kind === 'passage')
  $('sources').hidden = list.length === 0
  $('passages').replaceChildren(...list.map(b => {
    const d = passages.get(b.doc) ?? b
    const button = make('button', { type: 'button' }, make('b', { textContent: d.title || d.id || b.doc }), make('span', { textContent: d.text ?? '' }))
    button.addEventListener('click', () => open(d, citations))
    return make('li', { className: citations.some(c => c.document === d.id) ? 'cited' : '' }, button)
  }))
}

// cite puts a number behind what rests on a passage, which opens it there. Offsets are characters, as Array.from counts them.
function cite(answer, said, citations, documents) {
  const characters = Array.from(said)
  const parts = []
  let at = 0
  for (const c of [...citations].sort((a, b) => a.end - b.end)) {
    const number = documents.findIndex(d => d.id === c.document) + 1
    if (!number) continue
    const button = make('button', { type: 'button', textContent: number, title: documents[number - 1].title || `passage ${number}` })
    button.setAttribute('aria-label', `source: ${button.title}`)
    button.addEventListener('click', () => open(documents[number - 1], citations))
    parts.push(characters.slice(at, c.end).join(''), make('sup', {}, button))
    at = c.end
  }
  answer.replaceChildren(...parts, characters.slice(at).join(''))
}

// open shows a passage, with what the answer took from it.
function open(d, citations) {
  const text = Array.from(d.text ?? '')
  const parts = []
  let at = 0
  for (const c of citations.filter(c => c.document === d.id && c.text_end > c.text_start).sort((a, b) => a.text_start - b.text_start)) {
    if (c.text_start < at) continue
    parts.push(text.slice(at, c.text_start).join(''), make('mark', { textContent: text.slice(c.text_start, c.text_end).join('') }))
    at = c.text_end
  }
  $('title').textContent = d.title || d.id || d.doc || 'Passage'
  $('place').textContent = d.place ?? ''
  $('content').replaceChildren(...parts, text.slice(at).join(''))
  $('passage').showModal()
  $('content').querySelector('mark')?.scrollIntoView({ block: 'center' })
}
$('passage').addEventListener('click', event => { if (event.target === $('passage')) $('passage').close() })

// ---- collections ----

async function collections() {
  const { collections } = await (await call('/api/collections')).json()
  const usable = collections.filter(c => !c.error)
  const chosen = $('collection').value
  $('collection').replaceChildren(make('option', { value: '', textContent: 'none' }), ...usable.map(c => make('option', { value: c.name, textContent: c.name })))
  $('collection').value = usable.some(c => c.name === chosen) ? chosen : usable[0]?.name ?? ''
  $('names').replaceChildren(...usable.map(c => make('option', { value: c.name })))
  $('nothing').hidden = collections.length > 0
  $('list').hidden = collections.length === 0
  $('list').tBodies[0].replaceChildren(...collections.map(c => {
    const drop = make('button', { type: 'button', className: 'plain danger', textContent: 'Delete' })
    drop.addEventListener('click', async () => {
      if (!confirm(`Delete the collection ${c.name}?`)) return
      await tell(call(`/api/collections/${encodeURIComponent(c.name)}`, { method: 'DELETE' }))
      collections_()
    })
    const size = c.error ? [make('td', { className: 'danger', colSpan: 3, textContent: c.error })] : [number(c.documents), number(c.passages), number(bytes(c.bytes))]
    return make('tr', {}, make('td', { textContent: c.name }), ...size, make('td', { className: 'number' }, drop))
  }))
}
const collections_ = () => tell(collections())

$('files').addEventListener('change', () => { ingest([...$('files').files]); $('files').value = '' })
$('create').addEventListener('submit', event => { event.preventDefault(); $('files').click() })
const drop = $('drop')
drop.addEventListener('click', () => $('files').click())
drop.addEventListener('keydown', event => { if (event.key === 'Enter' || event.key === ' ') $('files').click() })
drop.addEventListener('dragover', event => { event.preventDefault(); drop.classList.add('over') })
drop.addEventListener('dragleave', () => drop.classList.remove('over'))
drop.addEventListener('drop', event => {
  event.preventDefault()
  drop.classList.remove('over')
  ingest([...event.dataTransfer.files])
})

// ingest sends files to the collection that is named and shows how far it is.
async function ingest(files) {
  if (!files.length) return
  if (!$('into').value) $('into').value = 'notes'
  if (!$('into').reportValidity()) return
  const name = $('into').value
  const form = new FormData()
  for (const f of files) form.append('files', f, f.name)
  $('ingest').hidden = false
  $('report').replaceChildren()
  $('progress').removeAttribute('value')
  $('step').textContent = `sending ${files.length} ${files.length === 1 ? 'file' : 'files'}`
  try {
    const response = await call(`/api/collections/${encodeURIComponent(name)}/files`, { method: 'POST', body: form, headers: {} })
    for await (const event of events(response)) {
      if (event.report) report(event.report)
      else {
        $('progress').value = event.total ? event.done / event.total : 0
        $('step').textContent = `${event.done} of ${event.total}`
      }
    }
    await collections()
    $('collection').value = name
  } catch (error) {
    $('step').textContent = ''
    fail(error)
  }
}

function report(r) {
  $('progress').value = 1
  $('step').textContent = `${r.added} added, ${r.changed} changed, ${r.unchanged} unchanged`
  $('report').replaceChildren(...(r.skipped ?? []).map(s => make('li', { className: 'danger', textContent: `${s.path}: ${s.reason}` })))
}

// ---- store ----

async function store() {
  const s = await (await call('/api/store')).json()
  $('tiers').tBodies[0].replaceChildren(...s.tiers.map(t => {
    const share = make('meter', { max: t.limit || 1, value: t.bytes })
    share.setAttribute('aria-label', `${t.name}: share of its limit`)
    return make('tr', {}, make('td', { textContent: t.name }), number(t.blocks), number(bytes(t.bytes)), number(bytes(t.limit)), make('td', {}, share))
  }))
  $('blocks').tBodies[0].replaceChildren(...s.blocks.map(b => {
    const remove = make('button', { type: 'button', className: 'plain', textContent: 'Drop' })
    remove.addEventListener('click', async () => {
      await tell(call('/api/store/drop', { method: 'POST', body: JSON.stringify({ ids: [b.id] }) }))
      store_()
    })
    return make('tr', {}, make('td', { textContent: b.id.slice(0, 12), title: b.id }), number(b.tokens), number(bytes(b.bytes)), make('td', { textContent: ago(b.used) }), make('td', { className: 'number' }, remove))
  }))
}
const store_ = () => tell(store())
$('dropall').addEventListener('click', async () => {
  if (!confirm('Drop all blocks?')) return
  await tell(call('/api/store/drop', { method: 'POST', body: '{}' }))
  store_()
})

// ---- the frame ----

const pages = { ask: null, collections: collections_, store: store_ }

function show() {
  const page = location.hash.slice(1) in pages ? location.hash.slice(1) : 'ask'
  for (const name in pages) $(name).hidden = name !== page
  for (const a of document.querySelectorAll('nav a')) a.toggleAttribute('aria-current', a.hash === `#${page}`)
  pages[page]?.()
  if (page === 'ask') $('text').focus()
}
addEventListener('hashchange', show)
addEventListener('keydown', event => {
  if (event.key === '/' && !/^(TEXTAREA|INPUT|SELECT)$/.test(document.activeElement?.tagName)) {
    event.preventDefault()
    location.hash = 'ask'
    $('text').focus()
  }
})

// call is fetch with the key this page was opened with, and errors as the server words them.
async function call(path, options = {}) {
  const key = sessionStorage.getItem('key')
  const headers = { ...(options.body && !(options.body instanceof FormData) ? { 'Content-Type': 'application/json' } : {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) }
  const response = await fetch(path, { ...options, headers })
  if (response.status === 401) {
    const given = prompt('API key')
    if (given) {
      sessionStorage.setItem('key', given)
      return call(path, options)
    }
  }
  if (!response.ok) {
    const text = await response.text()
    let message = text
    try { message = JSON.parse(text).error.message } catch { /* not the server's own */ }
    throw new Error(message || response.statusText)
  }
  return response
}

let hide
function fail(error) {
  $('error').textContent = error.message
  $('error').hidden = false
  clearTimeout(hide)
  hide = setTimeout(() => { $('error').hidden = true }, 8000)
}
const tell = promise => promise.catch(fail)
const number = value => make('td', { className: 'number', textContent: typeof value === 'number' ? value.toLocaleString() : value })
const bytes = n => {
  const units = ['B', 'KB', 'MB', 'GB', 'TB']
  let i = 0
  for (; n >= 1000 && i < units.length - 1; i++) n /= 1000
  return `${i ? n.toFixed(1) : n} ${units[i]}`
}
const ago = when => {
  const seconds = Math.max(0, (Date.now() - Date.parse(when)) / 1000)
  for (const [unit, size] of [['day', 86400], ['hour', 3600], ['minute', 60]]) {
    if (seconds >= size) return new Intl.RelativeTimeFormat('en').format(-Math.floor(seconds / size), unit)
  }
  return 'just now'
}

show()
tell(call('/v1/models').then(async r => { $('model').textContent = (await r.json()).data[0]?.id ?? '' }))
collections_()
