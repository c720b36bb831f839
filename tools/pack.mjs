#!/usr/bin/env node
// @ts-check
// Makes the tarballs that are published: the package, and those with the addons of the platforms.
// CLI: node tools/pack.mjs [--all] [FOLDER]        (build/pack)
//   --all      every platform in npm/, for a release; otherwise the one that this is
//   --refuse   makes nothing: it is what `npm pack` and `npm publish` run in the repository
//
// The packages of the platforms are dependencies of the published package only. In the repository they would make
// npm ask the registry for packages that are not there before the first release. So what npm itself would pack here
// could not load its native part.

import { copyFileSync, cpSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { ProcessError, capture, mainOf } from './process.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))

/** @param {string} file */
const readJson = (file) => JSON.parse(readFileSync(file, 'utf8'))

/** What an ELF file says that it is for, by what package.json calls it. @type {Record<string, number>} */
const MACHINES = { x64: 62, arm64: 183 }

/**
 * Makes the tarballs in `folder`, which is emptied first.
 * @param {string} folder
 * @param {boolean} [all] for every platform, whose addons must be there
 * @returns {{ main: string, platforms: string[] }} their paths
 */
export function pack(folder, all = false) {
  rmSync(folder, { recursive: true, force: true })
  const platforms = readdirSync(join(root, 'npm')).map((name) => ({
    name,
    manifest: readJson(join(root, 'npm', name, 'package.json')),
  }))
  const {
    scripts: _scripts,
    devDependencies: _dev,
    overrides: _overrides,
    ava: _ava,
    napi: _napi,
    ...manifest
  } = readJson(join(root, 'package.json'))
  for (const { name, manifest: platform } of platforms) {
    if (platform.version !== manifest.version) {
      throw new ProcessError(
        `npm/${name}/package.json is version ${platform.version}, package.json is ${manifest.version}`,
        1,
      )
    }
  }
  manifest.optionalDependencies = Object.fromEntries(
    platforms.map(({ manifest: platform }) => [platform.name, manifest.version]),
  )

  const main = stage(folder, 'secure-rdma', manifest)
  for (const path of [...manifest.files, 'LICENSE', 'README.md']) {
    if (existsSync(join(root, path))) cpSync(join(root, path), join(main, path), { recursive: true })
    else if (path !== 'README.md') throw new ProcessError(`${path} is not there: run npm run build`, 1)
  }

  const own = platforms.filter(
    ({ manifest: { os, cpu } }) => all || (os.includes(process.platform) && cpu.includes(process.arch)),
  )
  if (own.length === 0) throw new ProcessError(`there is no package for ${process.platform}-${process.arch} in npm/`, 1)
  const staged = own.map(({ manifest: { scripts: _scripts, ...manifest } }) => {
    checkAddon(manifest.main, manifest.cpu[0])
    const platform = stage(folder, manifest.name, manifest)
    copyFileSync(join(root, manifest.main), join(platform, manifest.main))
    copyFileSync(join(root, 'LICENSE'), join(platform, 'LICENSE'))
    return platform
  })

  return { main: npmPack(main, folder), platforms: staged.map((platform) => npmPack(platform, folder)) }
}

/** Checks that an addon is there and for the machine that its name says. @param {string} name @param {string} cpu */
function checkAddon(name, cpu) {
  const file = join(root, name)
  if (!existsSync(file)) throw new ProcessError(`${name} is not there: it is built on ${cpu}, by npm run build`, 1)
  const machine = readFileSync(file).readUInt16LE(18)
  if (machine !== MACHINES[cpu])
    throw new ProcessError(`${name} is for another machine (ELF ${machine}) than ${cpu}`, 1)
}

/** @param {string} folder @param {string} name @param {object} manifest */
function stage(folder, name, manifest) {
  const stage = join(folder, 'stage', name)
  mkdirSync(stage, { recursive: true })
  writeFileSync(join(stage, 'package.json'), JSON.stringify(manifest, null, 2) + '\n')
  return stage
}

/** @param {string} stage @param {string} folder */
function npmPack(stage, folder) {
  const [{ filename }] = JSON.parse(capture('npm', ['pack', '--json', '--pack-destination', folder, stage]).toString())
  return join(folder, filename)
}

if (process.argv[1] && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  await mainOf('pack', () => {
    const { values, positionals } = parseArgs({
      options: { all: { type: 'boolean' }, refuse: { type: 'boolean' } },
      allowPositionals: true,
    })
    if (values.refuse) {
      throw new ProcessError(
        'the repository itself is not what is published: node tools/pack.mjs makes the tarballs, and the release workflow publishes them',
        1,
      )
    }
    const { main, platforms } = pack(resolve(positionals[0] ?? join(root, 'build/pack')), values.all)
    // The package last: it needs the others.
    console.log([...platforms, main].join('\n'))
  })
}
