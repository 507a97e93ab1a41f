'use strict'
// Saving. flying-squid's own loop saves each second and, once a write failed, never again: it is stopped, and this class saves instead, says
// whether everything reached the disk, and tries what failed again with files opened anew.

const SAVE_MS = 60_000

class World {
  #serv
  #on = true

  constructor (serv, folder, minecraft) {
    this.#serv = serv
    this.folder = folder
    this.minecraft = minecraft
    this.overworld.stopSaving()
  }

  get overworld () { return this.#serv.overworld }

  /** Makes or loads the columns around the origin, so that the first player does not wait for them. */
  async prepare (radius) {
    for (let x = -radius; x < radius; x++) {
      for (let z = -radius; z < radius; z++) await this.overworld.getColumn(x, z)
    }
    await this.save()
  }

  /** Turns saving by itself on or off; the answer is the real server's. */
  automatic (on) {
    const before = this.#on
    this.#on = on
    if (before === on) return on ? 'Saving is already turned on' : 'Saving is already turned off'
    return on ? 'Automatic saving is now enabled' : 'Automatic saving is now disabled'
  }

  /** Whether every changed column and player is on the disk now. */
  async save ({ automatic = false } = {}) {
    if (automatic && !this.#on) return true
    const { overworld } = this
    try {
      await Promise.all(this.#serv.players.map((player) => player.save()))
      const due = [...overworld.savingQueue.entries()]
      let timer
      const late = new Promise((resolve, reject) => { timer = setTimeout(() => reject(new Error('the disk does not answer')), SAVE_MS) })
      try {
        await Promise.race([late, Promise.all(due.map(([, { chunkX, chunkZ }]) => {
          const column = overworld.getLoadedColumn(chunkX, chunkZ)
          return column ? overworld.storageProvider.save(chunkX, chunkZ, column) : null
        }))])
        for (const region of Object.values(overworld.storageProvider.regions)) await region.file.sync()
      } finally {
        clearTimeout(timer)
      }
      for (const [key, where] of due) {
        if (overworld.savingQueue.get(key) === where) overworld.savingQueue.delete(key) // changed again meanwhile: stays due
      }
      for (const [key, { chunkX, chunkZ }] of [...overworld.unloadQueue.entries()]) {
        if (!overworld.savingQueue.has(key)) overworld.forceUnloadColumn(key, chunkX, chunkZ)
      }
      return true
    } catch (error) {
      this.#serv.err(`Failed to save the world: ${error.message}`)
      await this.close()
      return false
    }
  }

  /** Files are opened anew at the next use. */
  async close () {
    const { regions } = this.overworld.storageProvider
    this.overworld.storageProvider.regions = {}
    await Promise.allSettled(Object.values(regions).map((region) => region.file?.close()))
  }
}

module.exports = World
