%%% The native library: stubs, specs and -on_load, nothing else.
%%%
%%% Only py, py_reactor_context, the acceptor and the application's start call it.
-module(py_nif).

%% Python: interpreter, calls, log
-export([start_python/4, start_calls/1, stop_calls/0]).
-export([submit/1, cast/1, cancel/1]).
-export([log_register/0, log_taken/1]).

-on_load(load/0).

-export_type([ticket/0, work/0, failure/0]).

-type ticket() :: reference().
-type work() ::
    {exec, Code :: binary()}
    | {eval, Expression :: binary(), Locals :: map()}
    | {call, Module :: binary(), Function :: binary(), Args :: list(), Kwargs :: map()}.
-type failure() :: {Class :: binary(), Message :: binary(), Traceback :: binary()}.

%%--------------------------------------------------------------------------------------------------
%% Python: interpreter, calls, log

%% Starts Python, or sets up a running one again. An empty program is that of the build.
-spec start_python(binary(), binary(), [binary()], binary()) -> ok | {error, binary()}.
start_python(_Program, _PackagePath, _PythonPath, _LogLevel) ->
    erlang:nif_error({not_loaded, ?MODULE}).

-spec start_calls(pos_integer()) -> ok | {error, binary()}.
start_calls(_Threads) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% What waits is answered {error, stopped}, what runs is interrupted.
-spec stop_calls() -> ok.
stop_calls() ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% The answer comes as the message {Ticket, Answer}.
-spec submit(work()) -> {ok, ticket()} | {error, overload | not_running | failure()}.
submit(_Work) ->
    erlang:nif_error({not_loaded, ?MODULE}).

-spec cast(work()) -> ok | {error, overload | not_running | failure()}.
cast(_Work) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% True if no answer was sent and none will be; false if the message is there or on its way.
-spec cancel(ticket()) -> boolean().
cancel(_Ticket) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% The calling process gets {py_log, Level, Text, Metadata} and must acknowledge with log_taken/1.
-spec log_register() -> ok.
log_register() ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% Returns how many lines were dropped since the last time.
-spec log_taken(pos_integer()) -> Dropped :: non_neg_integer().
log_taken(_Count) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%%--------------------------------------------------------------------------------------------------
%% Loading

-spec load() -> ok | {error, term()}.
load() ->
    erlang:load_nif(filename:join(priv_dir(), "py_nif"), 0).

%% Without the application's folder on the code path, priv is beside the folder of this module.
priv_dir() ->
    case code:priv_dir(py_reactor) of
        {error, bad_name} ->
            filename:join([filename:dirname(code:which(?MODULE)), "..", "priv"]);
        Dir ->
            Dir
    end.
