const D='/work/main/dist/'
const { readDemoConfig } = await import(D+'demo/config.js')
const { denoiserConfig } = await import(D+'demo/parts.js')
import * as d from '/work/main/dist/index.js'
const c = readDemoConfig('configs/nano.yaml')
if(process.argv[2]) c.model.denoiser.channels=JSON.parse(process.argv[2])
const { Module, tensor, ops, output } = d
const { AdamW } = await import(D+'train/index.js')
const m = await Module.create('unet', denoiserConfig(c), {seed:1})
console.log('params', m.parameters().reduce((a,p)=>a+p.shape.reduce((x,y)=>x*y,1),0))
const B=32
const latent=ops.randomNormal?ops.randomNormal([B,16,16,c.model.vae.latent],{seed:1}):tensor(Float32Array.from({length:B*256*c.model.vae.latent},()=>Math.random()*2-1),[B,16,16,c.model.vae.latent])
const context=tensor(Float32Array.from({length:B*16*128},()=>Math.random()*2-1),[B,16,128])
const o=new AdamW(m,{lr:1e-5})
const t=[[],[]]
for(let i=0;i<+(process.argv[3]??5);i++){
 let s=performance.now(); const y=await m.call('loss',{latent,context},{}, {seed:1,step:i}); t[0].push(performance.now()-s); s=performance.now(); await output(y,'loss').backward(); t[1].push(performance.now()-s); await o.step(1); o.zeroGrad(); for(const v of Object.values(y))v.dispose()
}
console.log('fwd',Math.min(...t[0]).toFixed(0),'bwd',Math.min(...t[1]).toFixed(0))
