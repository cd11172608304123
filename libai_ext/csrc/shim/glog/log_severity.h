// The one glog header that OneFlow's headers include but its wheel leaves out: the names of the log
// levels, as glog 0.5 numbers them.
#pragma once

typedef int LogSeverity;

const int GLOG_INFO = 0, GLOG_WARNING = 1, GLOG_ERROR = 2, GLOG_FATAL = 3, NUM_SEVERITIES = 4;
#ifndef GLOG_NO_ABBREVIATED_SEVERITIES
const int INFO = GLOG_INFO, WARNING = GLOG_WARNING, ERROR = GLOG_ERROR, FATAL = GLOG_FATAL;
#endif

#define DFATAL_LEVEL GLOG_ERROR
