export { buildReport, writeReport } from './report.js'
export type {
  ReportCell,
  ReportChart,
  ReportData,
  ReportGallery,
  ReportHeadline,
  ReportItem,
  ReportLine,
  ReportRow,
  ReportSeries,
  ReportStage,
  ReportTable,
} from './types.js'
