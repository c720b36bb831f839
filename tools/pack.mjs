#!/usr/bin/env node
// @ts-check
// Makes the tarballs that are published: the package, and the one with the addon of this platform.
// CLI: node tools/pack.mjs [FOLDER]        (build/pack)
//
// The packages of the platforms are dependencies of the published package only. In the repository they would make
// npm ask the registry for packages that are not there before the first release.

import { copyFileSync, cpSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { ProcessError, capture, mainOf } from './process.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))

/** @param {string} file */
const readJson = (file) => JSON.parse(readFileSync(file, 'utf8'))

/**
 * Makes the tarballs in `folder`, which is emptied first.
 * @param {string} folder
 * @returns {{ main: string, platform: string }} their paths
 */
export function pack(folder) {
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

  const own = platforms.find(({ manifest: { os, cpu } }) => os.includes(process.platform) && cpu.includes(process.arch))
  if (!own) throw new ProcessError(`there is no package for ${process.platform}-${process.arch} in npm/`, 1)
  const platform = stage(folder, own.manifest.name, own.manifest)
  copyFileSync(join(root, own.manifest.main), join(platform, own.manifest.main))
  copyFileSync(join(root, 'LICENSE'), join(platform, 'LICENSE'))

  return { main: npmPack(main, folder), platform: npmPack(platform, folder) }
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
    const { main, platform } = pack(resolve(process.argv[2] ?? join(root, 'build/pack')))
    console.log(`${main}\n${platform}`)
  })
}
