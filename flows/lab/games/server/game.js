'use strict'
// One game: flying-squid with a flat world of its own, and the console commands that a host's tools rely on. The rest of the commands go on to
// flying-squid. Emits 'stopped' once, when everything is saved and closed.

const { EventEmitter } = require('node:events')
const { createMCServer } = require('flying-squid')
const World = require('./world')

const SPAWN_CHUNKS = 3
const AUTOSAVE_MS = 30_000
const LEAVE_MS = 3_000

class Game extends EventEmitter {
  constructor (log, properties, minecraft) {
    super()
    this.log = log
    this.properties = properties
    this.minecraft = minecraft
    this.stopping = false
    this.serv = null
    this.world = null
    this.autosave = null
    this.queue = Promise.resolve()
  }

  /** Listens when it returns. Throws the listener's error where the port cannot be had. */
  async start () {
    const { log, properties } = this
    const began = Date.now()
    log.info(`Starting Minecraft server on ${properties.host === '0.0.0.0' ? '*' : properties.host}:${properties.port}`)
    log.info(`Preparing level "${properties.level}"`)
    const serv = this.serv = createMCServer({
      log,
      version: this.minecraft,
      host: properties.host,
      port: properties.port,
      motd: properties.motd,
      'max-players': properties.maxPlayers,
      'online-mode': properties.onlineMode,
      'view-distance': properties.view,
      gameMode: properties.mode,
      difficulty: properties.difficulty,
      worldFolder: properties.level,
      generation: { name: 'superflat', options: {} },
      'player-list-text': { header: { text: '' }, footer: { text: '' } },
      'everybody-op': false,
      'max-entities': 100,
      kickTimeout: 30_000,
      logging: false,
      plugins: {},
      hideErrors: true
    })
    await whole(serv)
    serv.on('error', (error) => log.error(error.stack))
    this.world = new World(serv, properties.level, this.minecraft)
    log.info('Preparing start region for dimension minecraft:overworld')
    await this.world.prepare(SPAWN_CHUNKS)
    log.info(`Time elapsed: ${Date.now() - began} ms`)
    this.autosave = setInterval(() => this.#later(() => this.world.save({ automatic: true })), AUTOSAVE_MS)
    if (this.stopping) this.#later(() => this.#end())
  }

  /** A console line. Lines are carried out one after the other. */
  command (line) {
    this.#later(() => this.#carryOut(line))
  }

  /** Ends the game; asking twice, or while it starts, is the same as asking once. */
  stop () {
    if (this.stopping) return
    this.stopping = true
    this.log.info('Stopping the server')
    if (this.world !== null) this.#later(() => this.#end())
  }

  #later (work) {
    this.queue = this.queue.then(work).catch((error) => this.log.error(`Encountered an unexpected exception: ${error.stack}`))
  }

  async #carryOut (line) {
    if (this.stopping) return
    const { log, serv } = this
    const [name, ...rest] = line.split(/\s+/)
    const text = rest.join(' ')
    switch (name) {
      case 'stop':
        this.stop()
        break
      case 'say':
        serv.broadcast(`[Server] ${text}`)
        log.info(`[Server] ${text}`)
        break
      case 'list': {
        const names = serv.players.map((player) => player.username)
        log.info(`There are ${names.length} of a max of ${this.properties.maxPlayers} players online: ${names.join(', ')}`)
        break
      }
      case 'save-all':
        log.info('Saving the game (this may take a moment!)')
        log.info(await this.world.save() ? 'Saved the game' : 'Unable to save the game (is there enough disk space?)')
        break
      case 'save-off':
      case 'save-on':
        log.info(this.world.automatic(name === 'save-on'))
        break
      case 'help':
        for (const each of ['help', 'kick <player>', 'list', 'save-all [flush]', 'save-off', 'save-on', 'say <message>', 'stop']) log.info(`/${each}`)
        break
      case 'kick': {
        const player = serv.getPlayer(rest[0] ?? '')
        if (player === null) {
          log.info('No player was found')
        } else {
          player._client.end(rest.slice(1).join(' ') || 'Kicked by an operator')
          log.info(`Kicked ${player.username}: ${rest.slice(1).join(' ') || 'Kicked by an operator'}`)
        }
        break
      }
      default:
        await this.#pass(line)
    }
  }

  async #pass (line) {
    try {
      const answer = await this.serv.commands.use(line)
      if (answer) this.log.info(answer)
    } catch (error) {
      if (!error.userError) throw error
      this.log.info('Unknown or incomplete command, see below for error')
      this.log.info(`${line}<--[HERE]`)
    }
  }

  async #end () {
    const { log, serv } = this
    clearInterval(this.autosave)
    log.info('Stopping server')
    log.info('Saving players')
    serv._server.socketServer.close()
    await Promise.allSettled(serv.players.map((player) => player.save()))
    for (const client of Object.values(serv._server.clients)) client.end('Server closed')
    const deadline = Date.now() + LEAVE_MS
    while (serv.players.length > 0 && Date.now() < deadline) await new Promise((resolve) => { setTimeout(resolve, 20) })
    log.info('Saving worlds')
    log.info("Saving chunks for level 'ServerLevel[world]'/minecraft:overworld")
    const saved = await this.world.save()
    if (saved) log.info('ThreadedAnvilChunkStorage (world): All chunks are saved')
    else log.error('Unable to save the game (is there enough disk space?)')
    serv.stopTickInterval()
    await this.world.close()
    this.emit('stopped')
  }
}

/** Until it listens and every plugin is loaded. A plugin that fails is seen as a rejection that nobody handles, and in no other way. */
async function whole (serv) {
  let failed
  const failure = new Promise((resolve, reject) => {
    failed = (error) => { if (!/^Timeout waiting for/.test(error?.message)) reject(error) } // its own 5 s are too short on a busy machine
    process.on('unhandledRejection', failed)
    serv._server.once('error', reject)
  })
  const ready = Promise.all(['listening', 'pluginsReady'].map((event) => new Promise((resolve) => {
    (event === 'listening' ? serv._server : serv).once(event, resolve)
  })))
  try {
    await Promise.race([ready, failure])
  } finally {
    process.off('unhandledRejection', failed)
  }
}

module.exports = Game
