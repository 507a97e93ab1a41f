'use strict'
// A player: node bot.js --host ADDRESS --port P --name HOST.NAME --version 1.16.5 --seconds N [--username U] [--timeout S] [--say TEXT]
//
// Connects to ADDRESS:P, asks in the handshake for HOST.NAME as a client that resolved it would, joins offline, waits until the server has
// sent chunks, position and health (so until it stands in the world), stays for N seconds, leaves. Prints one line of JSON; status 0 if all
// of it worked. `stage` says how far it got: connect, login, spawn, stay, done.

const { parseArgs } = require('node:util')
const mc = require('minecraft-protocol')

const { values } = parseArgs({
  options: {
    host: { type: 'string', default: '127.0.0.1' },
    port: { type: 'string', default: '25565' },
    name: { type: 'string', default: 'localhost' },
    version: { type: 'string', default: '1.16.5' },
    seconds: { type: 'string', default: '1' },
    username: { type: 'string', default: `bot${process.pid}` },
    timeout: { type: 'string', default: '20' },
    say: { type: 'string' }
  }
})

process.noDeprecation = true
const began = performance.now()
const since = () => Math.round(performance.now() - began)
const seen = { ok: false, stage: 'connect', name: values.name, version: values.version, username: values.username, chunks: 0, packets: 0, keep_alives: 0, chat: [] }

let over = false
function end (error) {
  if (over) return
  over = true
  seen.ok = error === undefined
  if (error !== undefined) seen.error = String(error.message ?? error)
  seen.ended_ms = since()
  process.stdout.write(`${JSON.stringify(seen)}\n`, () => process.exit(seen.ok ? 0 : 1))
}

const client = mc.createClient({
  host: values.host,
  port: Number(values.port),
  fakeHost: values.name,
  username: values.username,
  version: values.version,
  auth: 'offline',
  hideErrors: true
})
const patience = setTimeout(() => end(`no answer within ${values.timeout} s`), Number(values.timeout) * 1000)

client.on('connect', () => { seen.connected_ms = since(); seen.stage = 'login' })
client.on('login', (packet) => { seen.joined_ms = since(); seen.stage = 'spawn'; seen.entity = packet.entityId })
client.on('map_chunk', () => { seen.chunks++ })
client.on('keep_alive', () => { seen.keep_alives++ })
client.on('packet', () => { if (seen.stage === 'stay') seen.packets++ })
client.on('chat', (packet) => { if (seen.chat.length < 20) seen.chat.push(packet.message) })
client.on('position', (packet) => {
  seen.position = [packet.x, packet.y, packet.z]
  client.write('teleport_confirm', { teleportId: packet.teleportId })
  client.write('position_look', { x: packet.x, y: packet.y, z: packet.z, yaw: packet.yaw, pitch: packet.pitch, onGround: true })
  settled()
})
client.on('update_health', (packet) => { seen.health = packet.health; settled() })

let stays = null
function settled () {
  if (stays !== null || seen.position === undefined || seen.health === undefined || seen.chunks === 0) return
  clearTimeout(patience)
  seen.spawned_ms = since()
  seen.stage = 'stay'
  if (values.say) client.write('chat', { message: values.say })
  stays = setTimeout(() => {
    seen.stage = 'done'
    client.end('leaving')
    end()
  }, Number(values.seconds) * 1000)
}

client.on('kick_disconnect', (packet) => end(`kicked: ${packet.reason}`))
client.on('disconnect', (packet) => end(`refused: ${packet.reason}`))
client.on('error', end)
client.on('end', (reason) => end(`the connection ended: ${reason}`))
